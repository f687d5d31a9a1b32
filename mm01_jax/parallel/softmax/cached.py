"""Attention of a chunk of a prompt over the cache, on a mesh: heads over `tensor`, queries over `sequence`.

The cache lies whole on every shard of the sequence, and is read where it lies (`pallas_kernels/chunk_attention`).
"""

import jax
import jax.numpy as jnp

from mm01_jax import sharding
from mm01_jax.config import Rules
from mm01_jax.parallel.softmax.attention import own_heads, shards_of_key_heads
from pallas_kernels.chunk_attention import chunk_attention


def chunk_over_cache(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    place: tuple[jax.Array, jax.Array],
    tags: tuple[jax.Array, jax.Array],
    rules: Rules,
) -> jax.Array:
    """query (B, S, N, H), keys and values (M, n, B, K, T, H) with this chunk's written -> (B, S, N, H).

    Args:
      place: (period, layer) in the cache. tags: (positions, documents) (B, S); a row's tokens come first, one behind
        the other, padding (documents < 0) after them.
    """

    def local(query, keys, values, place, tags):
        (M, n), (period, layer), (positions_BS, documents_BS) = keys.shape[:2], place, tags
        keys, values = (x.reshape(M * n, *x.shape[2:]) for x in (keys, values))
        index = period * n + layer
        if shards_of_key_heads(rules) > 1:
            keys, values = (own_heads(x[index], query.shape[2], rules, axis=1)[None] for x in (keys, values))
            index = jnp.zeros_like(index)
        count_B = jnp.sum(documents_BS >= 0, axis=1, dtype=jnp.int32)
        return chunk_attention(query, keys, values, index, positions_BS[:, 0], count_B)

    tokens = sharding.spec(rules, "batch", "seq")
    queries = sharding.spec(rules, "batch", "seq", "heads", None)
    cache = sharding.spec(rules, None, None, "batch", "kv_heads", None, None)
    in_specs = (queries, cache, cache, (jax.P(), jax.P()), (tokens, tokens))
    return jax.shard_map(local, in_specs=in_specs, out_specs=queries)(query, keys, values, place, tags)
