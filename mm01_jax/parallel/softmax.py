"""Softmax attention on a mesh: heads over `tensor`, queries over `sequence`, keys and values gathered.

With grouped queries the keys and values are a fraction of the activations (1/8 in the released model), so gathering
them over `sequence` costs little. The mask is made from positions and segments that came with the batch, never from
an index inside a shard.
"""

import functools

import jax
from jax import lax

from mm01_jax import sharding
from mm01_jax.config import Rules
from pallas_kernels.softmax_attention import softmax_attention as kernel


def softmax_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    query_index: tuple[jax.Array, jax.Array],
    key_index: tuple[jax.Array, jax.Array],
    rules: Rules,
) -> jax.Array:
    """query (B, S, N, H); key, value (B, T, K, H); indices are (positions, segments) of (B, S) and (B, T).

    A query sees the keys of its own segment at positions up to its own. Returns (B, S, N, H).
    """
    index = sharding.spec(rules, "batch", "seq")
    queries = sharding.spec(rules, "batch", "seq", "heads", None)
    keys = sharding.spec(rules, "batch", "seq", "kv_heads", None)
    local = functools.partial(_local, seq_axes=rules.seq)
    in_specs = (queries, keys, keys, index, index, index, index)
    return jax.shard_map(local, in_specs=in_specs, out_specs=queries)(query, key, value, *query_index, *key_index)


def _local(query, key, value, query_positions, query_segments, key_positions, key_segments, *, seq_axes):
    axes = tuple(axis for axis in seq_axes if lax.axis_size(axis) > 1)
    if axes:
        gather = functools.partial(lax.all_gather, axis_name=axes, axis=1, tiled=True)
        key, value, key_positions, key_segments = map(gather, (key, value, key_positions, key_segments))
    return kernel(
        query, key, value, query_index=(query_positions, query_segments), key_index=(key_positions, key_segments)
    )
