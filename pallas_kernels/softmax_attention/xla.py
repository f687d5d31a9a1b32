"""Softmax attention in plain XLA, a block of queries at a time.

    P = softmax(Q K' / sqrt(H) + mask)      O = P V

Logits are float32 and exist for one block of queries only; the backward recomputes them.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.softmax_attention.masking import Index, split_queries, visible
from pallas_kernels.softmax_attention.xla_parts import attend as attend  # both part of the contract
from pallas_kernels.softmax_attention.xla_parts import attend_gradient as attend_gradient

QUERY_BLOCK = 512


def unsupported(query_BSNH, key_BTKH, value_BTKH) -> str | None:
    """Never: it runs everywhere."""
    del query_BSNH, key_BTKH, value_BTKH


def softmax_attention(query_BSNH, key_BTKH, value_BTKH, query_index: Index, key_index: Index) -> jax.Array:
    """Contract in `api.py`; differentiated by JAX."""
    B, S, N, H = query_BSNH.shape
    K = key_BTKH.shape[2]
    query = query_BSNH.reshape(B, S, K, N // K, H)
    attend = functools.partial(_block, key_BTKH, value_BTKH, key_index)
    if S <= QUERY_BLOCK:
        return attend((query, *query_index)).reshape(B, S, N, H)
    out = jax.lax.map(jax.checkpoint(attend), split_queries((query, *query_index), QUERY_BLOCK))
    return jnp.moveaxis(out, 0, 1).reshape(B, -1, N, H)[:, :S]  # from (blocks, B, block, K, G, H)


def _block(key_BTKH, value_BTKH, key_index, block):
    query_BSKGH, positions, segments = block
    wide = np.promote_types(query_BSKGH.dtype, np.float32)
    precision = "highest" if query_BSKGH.dtype == jnp.float32 else "default"
    einsum = functools.partial(jnp.einsum, precision=precision, preferred_element_type=wide)
    logits = einsum("bskgh,btkh->bkgst", query_BSKGH, key_BTKH) * (1.0 / math.sqrt(query_BSKGH.shape[-1]))
    mask = visible((positions, segments), key_index)[:, None, None]
    # A large finite number instead of -inf: rows that see nothing (padding) stay finite and are zeroed below.
    logits = jnp.where(mask, logits, jnp.finfo(wide).min)
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(logits - peak), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    probabilities = weights / jnp.where(total > 0, total, 1.0)
    out = einsum("bkgst,btkh->bskgh", probabilities.astype(value_BTKH.dtype), value_BTKH)
    return out.astype(query_BSKGH.dtype)
