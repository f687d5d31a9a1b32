"""Tiles on a mesh: a batch row's lie where its tokens do, dealt over the row's sequence shards.

Attention stays inside a tile, so it needs no message. Features are needed wherever the tokens are that they stand at:
they are gathered over `sequence` once, and each shard of the row takes those of its own tokens. Rows never meet.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mm01_jax import sharding
from mm01_jax.config import Rules
from mm01_jax.parallel import collectives
from pallas_kernels import dispatch
from pallas_kernels.precision import matmul_precision

TEXT, NEWLINE = -1, 0  # of an index table (data/image_grid.py); from 1 on features count


def unseen_patches(patches: int, dtype: jnp.dtype) -> int:
    """How many patches that nobody sees a tile needs behind its own: cuDNN's gradient wants an even number (jax 0.11).

    They are put behind once for all blocks: copies of queries, keys and values in every block cost more.
    """
    return patches % 2 if _in_cudnn(dtype) else 0


def tile_attention(query: jax.Array, key: jax.Array, value: jax.Array, *, patches: int, rules: Rules) -> jax.Array:
    """softmax(q k' / sqrt(H)) v inside each tile, every patch over the first `patches` of it; (B, T, P, N, H) each."""
    heads = sharding.spec(rules, "batch", "seq", None, "heads", None)
    in_cudnn = _in_cudnn(query.dtype)
    local = functools.partial(_local_attention, patches=patches, in_cudnn=in_cudnn)
    mapped = jax.shard_map(local, in_specs=(heads,) * 3, out_specs=heads, check_vma=not in_cudnn)
    return mapped(query, key, value)


def _in_cudnn(dtype: jnp.dtype) -> bool:
    # A CPU that compiles for a GPU has no cuDNN to ask.
    return dispatch.platform() == jax.default_backend() == "gpu" and dtype == jnp.bfloat16


def _local_attention(query: jax.Array, key: jax.Array, value: jax.Array, *, patches: int, in_cudnn: bool) -> jax.Array:
    tiles = tuple(x.reshape(-1, *x.shape[2:]) for x in (query, key, value))
    return (_attend_in_cudnn if in_cudnn else _attend)(*tiles, patches).reshape(query.shape)


def _attend_in_cudnn(query: jax.Array, key: jax.Array, value: jax.Array, patches: int) -> jax.Array:
    """(R, P, N, H) each."""
    R, P = query.shape[:2]
    lengths = {}
    if patches != P:
        lengths = {
            "query_seq_lengths": jnp.full((R,), P, jnp.int32),
            "key_value_seq_lengths": jnp.full((R,), patches, jnp.int32),
        }
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn", **lengths)


def _attend(query: jax.Array, key: jax.Array, value: jax.Array, patches: int) -> jax.Array:
    """The same in plain XLA, (R, P, N, H) each; scores and their softmax are float32."""
    dtype, wide = query.dtype, np.promote_types(query.dtype, np.float32)
    einsum = functools.partial(jnp.einsum, precision=matmul_precision(dtype), preferred_element_type=wide)
    key, value = key[:, :patches], value[:, :patches]
    scores = einsum("rqnh,rknh->rnqk", query, key) * (1.0 / math.sqrt(query.shape[-1]))
    return einsum("rnqk,rknh->rqnh", jax.nn.softmax(scores, axis=-1).astype(dtype), value).astype(dtype)


def place_features(
    x_BSD: jax.Array, features_BTPD: jax.Array, newline_D: jax.Array, index_BS: jax.Array, *, rules: Rules
) -> jax.Array:
    """Embeddings (B, S, D) with features at the tokens that the index table names, and the newline where it says so.

    Args:
      index_BS: int32; TEXT leaves the token's embedding, NEWLINE puts `newline_D`, 1 + t * P + p the feature of patch p
        of tile t of the same row.
    """
    tokens = sharding.spec(rules, "batch", "seq", "act_embed")
    features, index = sharding.spec(rules, "batch", "seq", None, "act_embed"), sharding.spec(rules, "batch", "seq")
    in_specs = (tokens, features, sharding.spec(rules, "act_embed"), index)
    local = functools.partial(_local_place, seq_axes=rules.seq)
    return jax.shard_map(local, in_specs=in_specs, out_specs=tokens)(x_BSD, features_BTPD, newline_D, index_BS)


def _local_place(x_BSD, features_BTPD, newline_D, index_BS, *, seq_axes: tuple[str, ...]):
    if math.prod(lax.axis_size(axis) for axis in seq_axes) > 1:
        features_BTPD = collectives.all_gather(features_BTPD, seq_axes, axis=1, tiled=True)
    B, T, P, D = features_BTPD.shape
    index_BS1 = index_BS[..., None]
    # Text asks for a place behind the last feature: it takes zeros, and its gradient goes nowhere.
    place_BS1 = jnp.where(index_BS1 > NEWLINE, index_BS1 - 1, T * P)
    taken = jnp.take_along_axis(features_BTPD.reshape(B, T * P, D), place_BS1, axis=1, mode="fill", fill_value=0)
    newline = jnp.broadcast_to(newline_D[None, None], taken.shape).astype(taken.dtype)
    return jnp.where(index_BS1 > NEWLINE, taken, jnp.where(index_BS1 == NEWLINE, newline, x_BSD))
