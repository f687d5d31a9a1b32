"""Softmax attention on a mesh: heads over `tensor`, queries over `sequence`, keys and values gathered or in a ring.

With grouped queries the keys and values are a fraction of the activations (1/8 in the released model), so gathering
them over `sequence` costs little until rows are very long; the ring never holds more than one shard's
(`choice.py`). The mask is made from positions and documents of whole rows, never from a place inside a shard.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from mm01_jax import sharding
from mm01_jax.config import ComputeConfig, Rules, SequenceLayout
from mm01_jax.parallel.softmax.choice import choose
from mm01_jax.parallel.softmax.gathered import gathered_attention
from mm01_jax.parallel.softmax.ring import ring_attention
from pallas_kernels import dispatch
from pallas_kernels.softmax_attention import softmax_attention as kernel
from pallas_kernels.varying import vary_alike


def self_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    tags: tuple[jax.Array, jax.Array],
    *,
    compute: ComputeConfig,
    rules: Rules,
    layout: SequenceLayout = "contiguous",
) -> jax.Array:
    """query (B, S, N, H), key and value (B, S, K, H) of whole rows in `layout` -> (B, S, N, H).

    tags are (positions, documents), (B, S) each: a query sees the keys of its own document at positions up to its own.
    """

    def local(query, key, value, tags):
        key, value = (own_heads(x, query.shape[2], rules) for x in (key, value))
        axes = _cut(rules)
        if not axes:
            return kernel(query, key, value, query_tags=tags, key_tags=tags)
        kind = compute.sequence_attention
        if kind == "auto":
            kind = choose(2 * key.nbytes, key.dtype.itemsize, lax.axis_size(axes), compute.remat)
        attention = {"ring": ring_attention, "gather": gathered_attention}[kind]
        return attention(query, key, value, tags, axes, layout)

    tags_spec, queries, keys = _specs(rules)
    in_specs = (queries, keys, keys, (tags_spec, tags_spec))
    return jax.shard_map(local, in_specs=in_specs, out_specs=queries)(query, key, value, tags)


def cached_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    query_tags: tuple[jax.Array, jax.Array],
    key_tags: tuple[jax.Array, jax.Array],
    rules: Rules,
    row_by_row: bool = False,
) -> jax.Array:
    """The same over the keys and values (B, T, K, H) of a cache, with tags of (B, S) and (B, T).

    A cache lies whole on every shard of the sequence; queries are cut over it. row_by_row: one row of the batch after
    another, so that none depends on how many there are. Queries (B * S, 1, N, H) are S of each row of the cache, drafts
    (`model/drafts.py`).
    """

    def local(query, key, value, query_tags, key_tags):
        key, value = (own_heads(x, query.shape[2], rules) for x in (key, value))
        query, key, value, *tags = vary_alike(query, key, value, *query_tags, *key_tags)

        def attend(row):
            query, key, value, *tags = row
            return kernel(query, key, value, query_tags=tuple(tags[:2]), key_tags=tuple(tags[2:]))

        if row_by_row:
            rows = jax.tree.map(lambda x: x[:, None], (query, key, value, *tags))
            return lax.map(attend, rows)[:, 0]
        if len(query) > len(key):
            return _of_drafts(attend, query, key, value, tags)
        return attend((query, key, value, *tags))

    tags, queries, _ = _specs(rules)
    keys, key_tag = sharding.spec(rules, "batch", None, "kv_heads", None), sharding.spec(rules, "batch", None)
    in_specs = (queries, keys, keys, (tags, tags), (key_tag, key_tag))
    return jax.shard_map(local, in_specs=in_specs, out_specs=queries)(query, key, value, query_tags, key_tags)


def _of_drafts(attend, query_R1NH, key, value, tags) -> jax.Array:
    """(R, 1, N, H): on a CPU one token of every row after another, each in the shapes of decode and with its bits."""
    rows, (*own_tags, slots, documents) = len(key), tags
    query, *own_tags = (x.reshape(rows, -1, *x.shape[2:]) for x in (query_R1NH, *own_tags))
    if dispatch.platform() != "cpu":
        return attend((query, key, value, *own_tags, slots, documents)).reshape(query_R1NH.shape)

    def one(token):
        query, *own_tags = (x[:, None] for x in token)
        return attend((query, key, value, *own_tags, slots, documents))[:, 0]

    out = lax.map(one, tuple(jnp.moveaxis(x, 1, 0) for x in (query, *own_tags)))
    return jnp.moveaxis(out, 0, 1).reshape(query_R1NH.shape)


def _specs(rules: Rules) -> tuple[jax.P, jax.P, jax.P]:
    """Of (tags, queries, keys)."""
    return (
        sharding.spec(rules, "batch", "seq"),
        sharding.spec(rules, "batch", "seq", "heads", None),
        sharding.spec(rules, "batch", "seq", "kv_heads", None),
    )


def _cut(rules: Rules) -> tuple[str, ...]:
    """The mesh axes that cut the sequence."""
    return tuple(axis for axis in rules.seq if lax.axis_size(axis) > 1)


def shards_of_key_heads(rules: Rules) -> int:
    """Over how many shards the queries' heads are split and the keys' are not."""
    return math.prod(lax.axis_size(axis) for axis in rules.heads if axis not in rules.kv_heads)


def own_heads(x: jax.Array, num_query_heads: int, rules: Rules, *, axis: int = 2) -> jax.Array:
    """The key heads (`axis` of x) of this shard's query heads, where more shards split the queries' heads than the
    keys'.

    With fewer key heads than tensor shards (`rules.kv_heads=()`), every shard holds all of them.
    """
    shards = shards_of_key_heads(rules)
    if shards == 1:
        return x
    num_key_heads = x.shape[axis]
    queries_per_key = num_query_heads * shards // num_key_heads
    first = lax.axis_index(tuple(axis for axis in rules.heads if axis not in rules.kv_heads)) * num_query_heads
    return lax.dynamic_slice_in_dim(x, first // queries_per_key, max(1, num_key_heads // shards), axis=axis)
