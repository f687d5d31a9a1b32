"""The weights of MiniMax-VL-01 beside the text model (paper 5; docs/model.md B.3, C.2).

Vision transformer, projector, newline: names, shapes and axes only, so that checkpoints carry the weights; the forward
comes with the vision work.
The tower is a pre-norm ViT: (row, column, channel) patches, a class token, learned positions, `num_layers` blocks
stacked along one leading axis, biases everywhere but in the patch embedding. Vision width is W, its head dim is W/N.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mm01_jax.config import ComputeConfig, ModelConfig, Rules, VisionConfig
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.layers import Initializer, ones, param, xavier

CHANNELS = 3


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Biases start at zero."""
    del key
    return jnp.zeros(shape, dtype)


class Blocks(nnx.Module):
    """All transformer blocks of the tower, stacked (layers, ...)."""

    def __init__(self, vision: VisionConfig, *, rngs: nnx.Rngs, dtype: str):
        W, N, F, n = vision.embed_dim, vision.num_heads, vision.mlp_dim, vision.num_layers
        H = W // N

        def weight(shape: tuple[int, ...], axes: tuple[str, ...], init: Initializer) -> nnx.Param:
            return param(rngs, (n, *shape), ("layer", *axes), init, dtype=dtype)

        heads = ("heads", "head_dim")
        self.mixer_norm = weight((W,), ("act_embed",), ones)
        self.mixer_norm_bias = weight((W,), ("act_embed",), zeros)
        self.query = weight((W, N, H), ("embed", *heads), xavier(W, W))
        self.query_bias = weight((N, H), heads, zeros)
        self.key = weight((W, N, H), ("embed", *heads), xavier(W, W))
        self.key_bias = weight((N, H), heads, zeros)
        self.value = weight((W, N, H), ("embed", *heads), xavier(W, W))
        self.value_bias = weight((N, H), heads, zeros)
        self.out = weight((N, H, W), (*heads, "embed"), xavier(W, W))
        self.out_bias = weight((W,), ("act_embed",), zeros)
        self.mlp_norm = weight((W,), ("act_embed",), ones)
        self.mlp_norm_bias = weight((W,), ("act_embed",), zeros)
        self.up = weight((W, F), ("embed", "ffn"), xavier(W, F))
        self.up_bias = weight((F,), ("ffn",), zeros)
        self.down = weight((F, W), ("ffn", "embed"), xavier(F, W))
        self.down_bias = weight((W,), ("act_embed",), zeros)


class VisionTower(nnx.Module):
    """Patches (row, column, channel, W), class token (W,), positions (P + 1, W), input norm, blocks."""

    def __init__(self, vision: VisionConfig, *, rngs: nnx.Rngs, dtype: str):
        W, p = vision.embed_dim, vision.patch_size
        fan_in = p * p * CHANNELS
        self.patches = param(rngs, (p, p, CHANNELS, W), (None, None, None, "embed"), xavier(fan_in, W), dtype=dtype)
        self.class_token = param(rngs, (W,), ("act_embed",), zeros, dtype=dtype)
        self.positions = param(
            rngs, (vision.num_patches + 1, W), ("patch", "embed"), xavier(vision.num_patches + 1, W), dtype=dtype
        )
        self.input_norm = param(rngs, (W,), ("act_embed",), ones, dtype=dtype)
        self.input_norm_bias = param(rngs, (W,), ("act_embed",), zeros, dtype=dtype)
        self.blocks = Blocks(vision, rngs=rngs, dtype=dtype)


class Projector(nnx.Module):
    """Two linear maps from vision width W to the text model's width D; GELU between them."""

    def __init__(self, vision: VisionConfig, config: ModelConfig, *, rngs: nnx.Rngs, dtype: str):
        W, D = vision.embed_dim, config.embed_dim
        self.first = param(rngs, (W, D), ("embed", "ffn"), xavier(W, D), dtype=dtype)
        self.first_bias = param(rngs, (D,), ("ffn",), zeros, dtype=dtype)
        self.second = param(rngs, (D, D), ("ffn", "embed"), xavier(D, D), dtype=dtype)
        self.second_bias = param(rngs, (D,), ("act_embed",), zeros, dtype=dtype)


class VLModel(nnx.Module):
    """MiniMax-VL-01's weights: the text model, the tower, the projector, the vector that ends a row of patches."""

    def __init__(
        self, config: ModelConfig, compute: ComputeConfig, rules: Rules, vision: VisionConfig, *, rngs: nnx.Rngs
    ):
        dtype = compute.param_dtype
        self.text = TextModel(config, compute, rules, rngs=rngs)
        self.vision = VisionTower(vision, rngs=rngs, dtype=dtype)
        self.projector = Projector(vision, config, rngs=rngs, dtype=dtype)
        self.image_newline = param(rngs, (config.embed_dim,), ("act_embed",), zeros, dtype=dtype)
