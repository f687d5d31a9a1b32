"""A chunk over a cache by `softmax_attention` of the layer's keys and values, taken out and turned. Runs everywhere."""

import jax.numpy as jnp

from pallas_kernels.softmax_attention import softmax_attention


def unsupported(query_BSNH, keys) -> str | None:
    """Never: it runs everywhere."""
    del query_BSNH, keys


def attend(query_BSNH, keys, values, layer, first_B, count_B):
    """Contract in the package's docstring."""
    B, S = query_BSNH.shape[:2]
    key, value = (jnp.swapaxes(array[layer], 1, 2) for array in (keys, values))
    T = key.shape[1]
    at_BS = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32)[None], (B, S))
    queries = first_B[:, None] + at_BS, jnp.where(at_BS < count_B[:, None], jnp.int32(0), jnp.int32(-1))
    place_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
    return softmax_attention(query_BSNH, key, value, query_tags=queries, key_tags=(place_BT, jnp.zeros_like(place_BT)))
