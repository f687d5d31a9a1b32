"""Softmax attention on a mesh: heads over `tensor`, queries over `sequence`, keys and values gathered or in a ring.

With grouped queries the keys and values are a fraction of the activations (1/8 in the released model), so gathering
them over `sequence` costs little until rows are very long; the ring never holds more than one shard's. The mask is
made from positions and segments that came with the batch, never from an index inside a shard.
"""

import functools
import math

import jax
from jax import lax

from mm01_jax import sharding
from mm01_jax.config import Rules
from mm01_jax.parallel.ring import ring_attention
from pallas_kernels.softmax_attention import softmax_attention as kernel


def softmax_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    query_index: tuple[jax.Array, jax.Array],
    key_index: tuple[jax.Array, jax.Array],
    rules: Rules,
    ring: bool = False,
) -> jax.Array:
    """query (B, S, N, H); key, value (B, T, K, H); indices are (positions, segments) of (B, S) and (B, T).

    A query sees the keys of its own segment at positions up to its own. `ring`, where queries and keys are the same
    tokens, passes keys around instead of gathering them. Returns (B, S, N, H).
    """
    index = sharding.spec(rules, "batch", "seq")
    queries = sharding.spec(rules, "batch", "seq", "heads", None)
    keys = sharding.spec(rules, "batch", "seq", "kv_heads", None)
    local = functools.partial(_local, rules=rules, ring=ring)
    in_specs = (queries, keys, keys, (index, index), (index, index))
    return jax.shard_map(local, in_specs=in_specs, out_specs=queries)(query, key, value, query_index, key_index)


def _local(query, key, value, query_index, key_index, *, rules: Rules, ring: bool):
    key, value = (_own_heads(x, query.shape[2], rules) for x in (key, value))
    axes = tuple(axis for axis in rules.seq if lax.axis_size(axis) > 1)
    if axes and ring:
        return ring_attention(query, key, value, *query_index, axes)
    if axes:
        gather = functools.partial(lax.all_gather, axis_name=axes, axis=1, tiled=True)
        key, value, *key_index = map(gather, (key, value, *key_index))
    return kernel(query, key, value, query_index=query_index, key_index=tuple(key_index))


def _own_heads(x_BTKH: jax.Array, num_query_heads: int, rules: Rules) -> jax.Array:
    """The key heads of this shard's query heads, where more shards split the queries' heads than the keys'.

    With fewer key heads than tensor shards (`rules.kv_heads=()`), every shard holds all of them.
    """
    shards = math.prod(lax.axis_size(axis) for axis in rules.heads if axis not in rules.kv_heads)
    if shards == 1:
        return x_BTKH
    held = x_BTKH.shape[2]
    queries_per_key = num_query_heads * shards // held
    first = lax.axis_index(tuple(axis for axis in rules.heads if axis not in rules.kv_heads)) * num_query_heads
    return lax.dynamic_slice_in_dim(x_BTKH, first // queries_per_key, max(1, held // shards), axis=2)
