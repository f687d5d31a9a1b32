"""The vision tower, the projector, and how features become tokens (docs/model.md C.2, C.4).

    x = norm([class, W_patch p] + positions);  x += Attention(norm(x)), x += W_2 gelu(W_1 norm(x)) per block
    f = W_2' gelu(W_1' x)    of the patches;   gelu(x) = x (1 + erf(x / sqrt 2)) / 2

Letters beside the text model's: T tiles of one image, the thumbnail first; P patches of a tile; C channels. Complex
arrays pass through, for a complex step. Weights carry their released names.
"""

import dataclasses
import math

import numpy as np
from scipy import special

from tests.reference.config import ReferenceConfig
from tests.reference.elementary import softmax
from tests.reference.model import Result, forward

TOWER, BLOCK, PROJECTOR = (
    "vision_tower.vision_model",
    "vision_tower.vision_model.encoder.layers",
    "multi_modal_projector",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VLReferenceConfig:
    """`text`, and the vision part under the names of the released `config.json`."""

    text: ReferenceConfig
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    image_token_index: int
    image_grid_pinpoints: tuple[tuple[int, int], ...]  # (width, height)
    layer_norm_eps: float = 1e-5

    @property
    def side(self) -> int:
        """Patches along a side of a tile."""
        return self.image_size // self.patch_size


def layer_norm(x, gain, bias, eps: float):
    centred = x - x.mean(axis=-1, keepdims=True)
    return gain * centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + eps) + bias


def gelu(x):
    return 0.5 * x * (1.0 + special.erf(x / math.sqrt(2.0)))


def projector_gelu(x):
    return gelu(x)


def linear(w, name: str, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def patches(config, tiles_TCYX):
    """(T, P, C * patch_size^2): each patch channel by channel, as the convolution's weights lie."""
    T, C = tiles_TCYX.shape[:2]
    n, p = config.side, config.patch_size
    return tiles_TCYX.reshape(T, C, n, p, n, p).transpose(0, 2, 4, 1, 3, 5).reshape(T, n * n, C * p * p)


def with_positions(w, x_TPD):
    """The class token in front, then a learned vector at each place added."""
    first = np.broadcast_to(w[f"{TOWER}.embeddings.class_embedding"], (len(x_TPD), 1, x_TPD.shape[-1]))
    return np.concatenate([first, x_TPD], axis=1) + w[f"{TOWER}.embeddings.position_embedding.weight"]


def input_norm(config, w, x_TPD):
    return layer_norm(x_TPD, w[f"{TOWER}.pre_layrnorm.weight"], w[f"{TOWER}.pre_layrnorm.bias"], config.layer_norm_eps)


def attention(q_TPNH, k_TPNH, v_TPNH):
    """Every patch of a tile sees every patch of the same tile."""
    scores = np.einsum("tqnh,tknh->tnqk", q_TPNH, k_TPNH) / math.sqrt(q_TPNH.shape[-1])
    return np.einsum("tnqk,tknh->tqnh", softmax(scores), v_TPNH)


def block(config, layer: int, w, x_TPD):
    prefix = f"{BLOCK}.{layer}"

    def norm(name: str, x):
        return layer_norm(x, w[f"{prefix}.{name}.weight"], w[f"{prefix}.{name}.bias"], config.layer_norm_eps)

    y = norm("layer_norm1", x_TPD)
    heads = (*y.shape[:2], config.num_attention_heads, -1)
    q, k, v = (linear(w, f"{prefix}.self_attn.{name}_proj", y).reshape(heads) for name in "qkv")
    x_TPD = x_TPD + linear(w, f"{prefix}.self_attn.out_proj", attention(q, k, v).reshape(y.shape))
    y = norm("layer_norm2", x_TPD)
    return x_TPD + linear(w, f"{prefix}.mlp.fc2", gelu(linear(w, f"{prefix}.mlp.fc1", y)))


def last_hidden(config, w, hidden):
    """What the features are taken from, of the inputs of all blocks and the last one's output."""
    return hidden[-1]


def tower(config, w, tiles_TCYX):
    """Normalised pixels -> (T, 1 + P, D), the class token at 0."""
    kernel = w[f"{TOWER}.embeddings.patch_embedding.weight"]
    x_TPD = patches(config, tiles_TCYX) @ kernel.reshape(len(kernel), -1).T
    hidden = [input_norm(config, w, with_positions(w, x_TPD))]
    for layer in range(config.num_hidden_layers):
        hidden.append(block(config, layer, w, hidden[-1]))
    return last_hidden(config, w, hidden)


def without_class(x_TPD):
    return x_TPD[:, 1:]


def project(w, x_TPD):
    y = projector_gelu(linear(w, f"{PROJECTOR}.linear_1", x_TPD))
    return linear(w, f"{PROJECTOR}.linear_2", y)


def best_resolution(config, size) -> tuple[int, int]:
    """(width, height) of the pinpoints for an image of size (width, height)."""
    width, height = size
    best, most, least = None, -1, math.inf
    for across, down in config.image_grid_pinpoints:
        scale = min(across / width, down / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        waste = across * down - kept
        if kept > most or (kept == most and waste < least):
            best, most, least = (across, down), kept, waste
    return best


def tile_grid(config, size) -> tuple[int, int]:
    """(rows, columns) of tiles."""
    across, down = best_resolution(config, size)
    return down // config.image_size, across // config.image_size


def as_map(config, features_TPD, grid):
    """Features of the grid's tiles -> the image's map (rows, columns, D)."""
    rows, columns = grid
    n = config.side
    tiles = features_TPD.reshape(rows, columns, n, n, -1)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(rows * n, columns * n, -1)


def kept(whole: int, new: int) -> tuple[int, int]:
    """First and last + 1 of the rows or columns that are kept of `whole`, of which `new` are image."""
    cut = (whole - new) // 2
    return cut, whole - cut


def new_length(of_image: int, by: int, other: int) -> int:
    return of_image * by // other


def unpad(map_YXD, size):
    """Without the rows, or else the columns, that padding made."""
    width, height = size
    rows, columns = map_YXD.shape[:2]
    if width * rows > columns * height:
        first, last = kept(rows, new_length(height, columns, width))
        return map_YXD[first:last]
    first, last = kept(columns, new_length(width, rows, height))
    return map_YXD[:, first:last]


def with_newlines(map_YXD, newline_D):
    column = np.broadcast_to(newline_D, (len(map_YXD), 1, len(newline_D)))
    return np.concatenate([map_YXD, column], axis=1)


def flat(map_YXD):
    return map_YXD.reshape(-1, map_YXD.shape[-1])


def in_order(thumbnail_PD, rows_RD):
    return np.concatenate([thumbnail_PD, rows_RD])


def split_tiles(features_TPD):
    """(the thumbnail's, the grid's)."""
    return features_TPD[0], features_TPD[1:]


def pack(config, w, features_TPD, size):
    """Tokens (R, D) of one image of size (width, height) from its tiles' features."""
    thumbnail, tiles = split_tiles(features_TPD)
    map_YXD = unpad(as_map(config, tiles, tile_grid(config, size)), size)
    return in_order(thumbnail, flat(with_newlines(map_YXD, w["image_newline"])))


def image_tokens(config, weights, tiles_TCYX, size):
    """Pixels of one image's tiles -> its tokens."""
    w = exact(weights)
    return pack(config, w, project(w, without_class(tower(config, w, tiles_TCYX))), size)


def exact(weights):
    """In float64 at least."""
    return {name: np.asarray(weight, np.result_type(weight, np.float64)) for name, weight in weights.items()}


def text_weights(weights):
    """The text model's, under their names in a checkpoint of text alone."""
    prefix = "language_model."
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def merge(config, weights, ids_S, packed):
    """Embeddings (1, S, D) of expanded ids: those of the image token are the images' tokens, in order."""
    embed = exact(text_weights(weights))["model.embed_tokens.weight"]
    where = ids_S == config.image_token_index
    features = np.concatenate([np.zeros((0, embed.shape[1])), *packed])
    merged = np.array(embed[ids_S], np.result_type(embed, features))
    merged[where] = features
    return merged[None]


def positions(config, ids_S):
    """Every token has its own."""
    return np.arange(len(ids_S))


def vl_forward(config, weights, ids_S, packed) -> Result:
    """The whole model on expanded ids and the tokens of their images."""
    merged_1SD = merge(config, weights, ids_S, packed)
    at_1S = positions(config, ids_S)[None]
    return forward(config.text, text_weights(weights), ids_S[None], positions_BS=at_1S, embeddings_BSD=merged_1SD)
