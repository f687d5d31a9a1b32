"""The formulas of vision in NumPy: what `logits --pixels` runs and `certify` varies (docs/model.md C.2, C.4).

From the pixels of the tiles of one text's images to the tokens that stand for them. Each method of `Vision` is one
formula, so that a porting mistake is a subclass that replaces one of them (vision_mistakes.py). Weights come in our
layout, by leaf. T tiles of an image, P patches, W width, N heads, D the text model's width; sizes are (height, width).
"""

import math
from collections.abc import Mapping

import numpy as np
from scipy import special

from mm01_jax.config import VisionConfig
from mm01_jax.convert import table
from mm01_jax.convert.certify.forward import softmax
from mm01_jax.data.image_grid import best_grid

Weights = Mapping[str, np.ndarray]


def weights_of(source) -> dict[str, np.ndarray]:
    """Leaf -> array in the stored dtype, of everything beside the text model."""
    tensors = [tensor for tensor in source.tensors if not tensor.leaf.startswith("text/")]
    shapes, read = table.leaves(tensors), {}
    for tensor in tensors:
        chunk = source.read(tensor)
        if tensor.leaf not in read:
            read[tensor.leaf] = np.empty(shapes[tensor.leaf].shape, chunk.dtype)
        read[tensor.leaf][tensor.index] = chunk
    return read


class Vision:
    """The formulas of vision; every array has the dtype `dtype`."""

    def __init__(self, config: VisionConfig, dtype: str = "float32"):
        self.config, self.dtype = config, np.dtype(dtype)
        self.side = config.image_size // config.patch_size

    # The tower and the projector.

    def norm(self, x: np.ndarray, w: Weights, name: str, at=()) -> np.ndarray:
        return self.layer_norm(x, w[name][at], w[f"{name}_bias"][at])

    def layer_norm(self, x: np.ndarray, gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.mean(centred * centred, axis=-1, keepdims=True)
        return gain * (centred / np.sqrt(variance + self.dtype.type(self.config.norm_eps))) + bias

    def gelu(self, x: np.ndarray) -> np.ndarray:
        return (x * (1 + special.erf(x / self.dtype.type(math.sqrt(2))))) / 2

    def projector_gelu(self, x: np.ndarray) -> np.ndarray:
        return Vision.gelu(self, x)

    def patches(self, tiles_TCYX: np.ndarray) -> np.ndarray:
        """(T, P, row * column * channel)."""
        T, C, n, p = len(tiles_TCYX), tiles_TCYX.shape[1], self.side, self.config.patch_size
        cut = tiles_TCYX.reshape(T, C, n, p, n, p).transpose(0, 2, 4, 3, 5, 1)
        return cut.reshape(T, n * n, -1)

    def with_positions(self, x_TPW: np.ndarray, w: Weights) -> np.ndarray:
        first = np.broadcast_to(w["vision/class_token"], (len(x_TPW), 1, x_TPW.shape[-1]))
        return np.concatenate([first, x_TPW], axis=1) + w["vision/positions"]

    def input_norm(self, x_TPW: np.ndarray, w: Weights) -> np.ndarray:
        return self.norm(x_TPW, w, "vision/input_norm")

    def attention(self, q_TPNH: np.ndarray, k_TPNH: np.ndarray, v_TPNH: np.ndarray) -> np.ndarray:
        q, k, v = (np.moveaxis(x, 2, 1) for x in (q_TPNH, k_TPNH, v_TPNH))
        scores = q @ np.swapaxes(k, -1, -2) / self.dtype.type(math.sqrt(q.shape[-1]))
        return np.moveaxis(softmax(scores) @ v, 1, 2)

    def block(self, x_TPW: np.ndarray, w: Weights, at: int) -> np.ndarray:
        b, W = "vision/blocks/", x_TPW.shape[-1]

        def linear(x: np.ndarray, name: str) -> np.ndarray:
            return x @ w[b + name][at].reshape(x.shape[-1], -1) + w[f"{b}{name}_bias"][at].reshape(-1)

        y = self.norm(x_TPW, w, b + "mixer_norm", at)
        heads = (*y.shape[:2], self.config.num_heads, -1)
        y = self.attention(*(linear(y, name).reshape(heads) for name in ("query", "key", "value")))
        x = x_TPW + linear(y.reshape(*y.shape[:2], W), "out")
        return x + linear(self.gelu(linear(self.norm(x, w, b + "mlp_norm", at), "up")), "down")

    def chosen(self, hidden: list[np.ndarray]) -> np.ndarray:
        """What the features are taken from, of the inputs of all blocks and the last one's output."""
        return hidden[-1]

    def without_class(self, x_TPW: np.ndarray) -> np.ndarray:
        return x_TPW[:, 1:]

    def features(self, tiles_TCYX: np.ndarray, w: Weights) -> np.ndarray:
        """(T, P, D)."""
        kernel = w["vision/patches"]
        x = self.patches(tiles_TCYX.astype(self.dtype)) @ kernel.reshape(-1, kernel.shape[-1])
        hidden = [self.input_norm(self.with_positions(x, w), w)]
        for at in range(self.config.num_layers):
            hidden.append(self.block(hidden[-1], w, at))
        y = self.without_class(self.chosen(hidden)) @ w["projector/first"] + w["projector/first_bias"]
        return self.projector_gelu(y) @ w["projector/second"] + w["projector/second_bias"]

    # From features to tokens.

    def grid(self, size) -> tuple[int, int]:
        """(rows, columns) of tiles."""
        return best_grid((size[1], size[0]), self.config.grids, self.config.image_size)[::-1]

    def as_map(self, tiles_TPD: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """(rows, columns, D) of patches."""
        n = self.side
        cut = tiles_TPD.reshape(*grid, n, n, -1).transpose(0, 2, 1, 3, 4)
        return cut.reshape(grid[0] * n, grid[1] * n, -1)

    def length(self, of_image: int, by: int, other: int) -> int:
        """Patches that the image takes of an axis."""
        return of_image * by // other

    def kept(self, whole: int, new: int) -> slice:
        cut = (whole - new) // 2
        return slice(cut, whole - cut)

    def unpad(self, map_YXD: np.ndarray, size) -> np.ndarray:
        (height, width), (rows, columns) = size, map_YXD.shape[:2]
        if width * rows > columns * height:
            return map_YXD[self.kept(rows, self.length(height, columns, width))]
        return map_YXD[:, self.kept(columns, self.length(width, rows, height))]

    def with_newlines(self, map_YXD: np.ndarray, newline_D: np.ndarray) -> np.ndarray:
        return np.concatenate([map_YXD, self.column(map_YXD, newline_D)], axis=1)

    def column(self, map_YXD: np.ndarray, newline_D: np.ndarray) -> np.ndarray:
        return np.broadcast_to(newline_D, (len(map_YXD), 1, len(newline_D)))

    def flat(self, map_YXD: np.ndarray) -> np.ndarray:
        return map_YXD.reshape(-1, map_YXD.shape[-1])

    def in_order(self, thumbnail_PD: np.ndarray, rows_RD: np.ndarray) -> np.ndarray:
        return np.concatenate([thumbnail_PD, rows_RD])

    def image(self, features_TPD: np.ndarray, newline_D: np.ndarray, size) -> np.ndarray:
        """The tokens (R, D) of one image."""
        whole = self.as_map(features_TPD[1:], self.grid(size))
        return self.in_order(features_TPD[0], self.flat(self.with_newlines(self.unpad(whole, size), newline_D)))

    def images(self, pixels: np.ndarray, sizes, w: Weights) -> list[np.ndarray]:
        """The tokens of every image, in order; `pixels` are the tiles of all."""
        w = {leaf: array.astype(self.dtype) for leaf, array in w.items()}
        features, packed, at = self.features(pixels, w), [], 0
        for size in sizes:
            count = num_tiles(self.config, size)
            packed.append(self.image(features[at : at + count], w["image_newline"], size))
            at += count
        return packed

    # In the text.

    def arranged(self, packed: list[np.ndarray]) -> list[np.ndarray]:
        """The order in which the images' tokens fill their places."""
        return packed

    def positions(self, is_image_S: np.ndarray) -> np.ndarray:
        """Of every token, for RoPE."""
        return np.arange(len(is_image_S))


def num_tiles(config: VisionConfig, size) -> int:
    """Of one image, its thumbnail among them."""
    return 1 + math.prod(best_grid((size[1], size[0]), config.grids, config.image_size))
