"""What MiniMax-VL-01 sees with: the vision transformer and the projector into the text model's width (paper 5;
docs/model.md B.3, C.2).

    x = norm([class, W_patch tile] + positions);  per block  x += Attention(norm(x)),  x += W_down gelu(W_up norm(x))
    features = W_second gelu(W_first x)          of the patches' x: the class token is dropped, no norm follows

LayerNorms in float32, gelu the exact one (erf), biases everywhere but in W_patch. Attention sees one tile alone and all
of it. Letters: B rows, T tiles of a row, P patches and the class token, W width, N heads, H = W / N, F mlp width.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mm01_jax import sharding
from mm01_jax.config import ComputeConfig, ModelConfig, Rules, VisionConfig
from mm01_jax.model.layers import Initializer, cast_and_gather, einsum, in_use, ones, param, spread, summed_in, xavier
from mm01_jax.parallel.tiles import tile_attention, unseen_patches
from pallas_kernels import dispatch

CHANNELS = 3
MOST_UNROLLED = 32  # blocks; each adds some 2 s to compiling
_TILES = ("batch", "seq")  # logical axes of (rows, tiles of a row)


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Biases start at zero."""
    del key
    return jnp.zeros(shape, dtype)


# These two keep their inputs alone for the backward pass, not float32 of what they make of them: on an H200 the tower's
# forward and backward went from 279 to 224 ms at 64 tiles.
@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=3)
def layer_norm(x: jax.Array, gain: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """gain * (x - mean) / sqrt(var + eps) + bias over the last dim, all of it in float32."""
    wide = x.astype(np.promote_types(x.dtype, np.float32))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    lead = (1,) * (x.ndim - 1)
    gain, bias = (weight.astype(wide.dtype).reshape(*lead, -1) for weight in (gain, bias))
    return (normed * gain + bias).astype(x.dtype)


@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu(x: jax.Array) -> jax.Array:
    """x (1 + erf(x / sqrt 2)) / 2 in float32. jax.nn.gelu has erfc, which GPUs have no instruction sequence of."""
    wide = x.astype(np.promote_types(x.dtype, np.float32))
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def linear(equation: str, x: jax.Array, weight: nnx.Param, bias: nnx.Param, rules: Rules) -> jax.Array:
    """x W + b in x's dtype."""
    out = einsum(equation, x, cast_and_gather(weight, x.dtype, rules))
    return out + spread(cast_and_gather(bias, x.dtype, rules), out)


def _saved(remat: str):
    """What the backward pass finds of a block: with "full" its input alone, else every product with a weight."""
    policies = jax.checkpoint_policies
    return policies.nothing_saveable if remat == "full" else policies.dots_with_no_batch_dims_saveable


def unrolls(vision: VisionConfig) -> bool:
    """Whether the program of a training step holds every block: on GPUs, where they are few.

    A scan stacks what each block keeps for its backward pass, a copy of all of it: on an H200 the released tower takes
    177 ms for 64 tiles both ways instead of 224 (benchmarks/vision.md). The forward alone gains nothing.
    """
    return vision.num_layers <= MOST_UNROLLED and dispatch.platform() == "gpu"


class Blocks(nnx.Module):
    """All transformer blocks of the tower, stacked (layers, ...); one block when sliced."""

    def __init__(self, vision: VisionConfig, compute: ComputeConfig, rules: Rules, *, rngs: nnx.Rngs):
        W, N, F, n = vision.embed_dim, vision.num_heads, vision.mlp_dim, vision.num_layers
        H = W // N

        def weight(shape: tuple[int, ...], axes: tuple[str, ...], init: Initializer) -> nnx.Param:
            return param(rngs, (n, *shape), ("layer", *axes), init, compute=compute)

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
        self.config, self.rules = vision, rules

    def __call__(self, x_BTPW: jax.Array) -> jax.Array:
        """One block of x (B, T, P, W)."""
        rules, eps = self.rules, self.config.norm_eps
        y = layer_norm(x_BTPW, self.mixer_norm[...], self.mixer_norm_bias[...], eps)
        project = functools.partial(linear, "btpw,wnh->btpnh", y, rules=rules)
        query, key, value = (
            project(weight, bias)
            for weight, bias in (
                (self.query, self.query_bias),
                (self.key, self.key_bias),
                (self.value, self.value_bias),
            )
        )
        y = tile_attention(query, key, value, patches=self.config.num_patches + 1, rules=rules)
        x = self._add(x_BTPW, linear("btpnh,nhw->btpw", y, self.out, self.out_bias, rules))
        y = layer_norm(x, self.mlp_norm[...], self.mlp_norm_bias[...], eps)
        y = gelu(linear("btpw,wf->btpf", y, self.up, self.up_bias, rules))
        return self._add(x, linear("btpf,fw->btpw", y, self.down, self.down_bias, rules))

    def _add(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return sharding.constrain(x + y, self.rules, *_TILES, None, "act_embed")


class VisionTower(nnx.Module):
    """Patches (row, column, channel, W), class token (W,), positions (P, W), input norm, blocks."""

    def __init__(self, vision: VisionConfig, compute: ComputeConfig, rules: Rules, *, rngs: nnx.Rngs):
        W, p = vision.embed_dim, vision.patch_size
        fan_in = p * p * CHANNELS
        self.patches = param(rngs, (p, p, CHANNELS, W), (None, None, None, "embed"), xavier(fan_in, W), compute=compute)
        self.class_token = param(rngs, (W,), ("act_embed",), xavier(W, W), compute=compute)
        self.positions = param(
            rngs, (vision.num_patches + 1, W), ("patch", "embed"), xavier(vision.num_patches + 1, W), compute=compute
        )
        self.input_norm = param(rngs, (W,), ("act_embed",), ones, compute=compute)
        self.input_norm_bias = param(rngs, (W,), ("act_embed",), zeros, compute=compute)
        self.blocks = Blocks(vision, compute, rules, rngs=rngs)
        self.config, self.compute, self.rules = vision, compute, rules

    def __call__(self, tiles_BTCYX: jax.Array, *, training: bool = False) -> jax.Array:
        """float32 pixels (B, T, 3, side, side), normalised -> the last block's (B, T, P, W), class token first.

        training: a backward pass follows, so blocks are written out where that is faster (`unrolls`).
        """
        dtype = jnp.dtype(self.compute.dtype)
        weight = cast_and_gather(self.patches, dtype, self.rules)
        x = einsum("btpw,wv->btpv", self._cut(tiles_BTCYX.astype(dtype)), weight.reshape(-1, weight.shape[-1]))
        x = jnp.concatenate([spread(in_use(self.class_token, dtype), x[:, :, :1]), x], axis=2)
        x = x + spread(cast_and_gather(self.positions, dtype, self.rules), x)
        x = layer_norm(x, self.input_norm[...], self.input_norm_bias[...], self.config.norm_eps)
        patches = x.shape[2]
        x = jnp.pad(x, ((0, 0), (0, 0), (0, unseen_patches(patches, dtype)), (0, 0)))
        x = sharding.constrain(x, self.rules, *_TILES, None, "act_embed")
        if training and unrolls(self.config):
            return self._every_block(x)[:, :, :patches]

        def step(x: jax.Array, block: Blocks) -> tuple[jax.Array, None]:
            return block(x), None

        if self.compute.remat != "none":
            step = jax.checkpoint(step, policy=_saved(self.compute.remat), prevent_cse=False)
        return jax.lax.scan(step, x, self.blocks)[0][:, :, :patches]

    def _every_block(self, x: jax.Array) -> jax.Array:
        """All blocks one behind the other, traced and lowered once; each weight is taken apart by one split."""
        dtype = summed_in(self.patches, x.dtype)
        weights, tree = jax.tree_util.tree_flatten_with_path(self.blocks)
        columns = [
            [
                part[0] if "norm" in jax.tree_util.keystr(path) else part[0].astype(dtype)  # norms are in float32
                for part in jax.lax.split(weight, (1,) * self.config.num_layers)
            ]
            for path, weight in weights
        ]

        def step(x: jax.Array, block: Blocks) -> jax.Array:
            return block(x)

        if self.compute.remat != "none":
            step = jax.checkpoint(step, policy=_saved(self.compute.remat))
        step = jax.jit(step)
        for block in zip(*columns, strict=True):
            x = step(x, jax.tree.unflatten(tree, block))
        return x

    def _cut(self, tiles_BTCYX: jax.Array) -> jax.Array:
        """Tiles -> (B, T, patches, patch row * patch column * channel), patches row by row."""
        B, T, C, side, _ = tiles_BTCYX.shape
        p = self.config.patch_size
        cut = tiles_BTCYX.reshape(B, T, C, side // p, p, side // p, p)
        return cut.transpose(0, 1, 3, 5, 4, 6, 2).reshape(B, T, (side // p) ** 2, p * p * C)


class Projector(nnx.Module):
    """Two linear maps from vision width W to the text model's width D; gelu between them."""

    def __init__(
        self, vision: VisionConfig, config: ModelConfig, compute: ComputeConfig, rules: Rules, *, rngs: nnx.Rngs
    ):
        W, D = vision.embed_dim, config.embed_dim
        self.first = param(rngs, (W, D), ("embed", "ffn"), xavier(W, D), compute=compute)
        self.first_bias = param(rngs, (D,), ("ffn",), zeros, compute=compute)
        self.second = param(rngs, (D, D), ("ffn", "embed"), xavier(D, D), compute=compute)
        self.second_bias = param(rngs, (D,), ("act_embed",), zeros, compute=compute)
        self.rules = rules

    def __call__(self, x_BTPW: jax.Array) -> jax.Array:
        """(B, T, P, W) -> (B, T, P, D)."""
        y = gelu(linear("btpw,wd->btpd", x_BTPW, self.first, self.first_bias, self.rules))
        y = linear("btpd,de->btpe", y, self.second, self.second_bias, self.rules)
        return sharding.constrain(y, self.rules, *_TILES, None, "act_embed")
