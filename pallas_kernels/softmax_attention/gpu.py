"""Softmax attention for NVIDIA Hopper (Pallas Mosaic GPU: TMA and wgmma), bfloat16: `gpu_forward`, and what
`gpu_backward` names.
"""

import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.softmax_attention import gpu_backward, gpu_forward, gpu_key_gradients, gpu_query_gradient
from pallas_kernels.softmax_attention.gpu_blocks import TILE
from pallas_kernels.softmax_attention.masking import Tags, filled_tags, filled_up, key_spans, query_spans

HEAD_DIMS = (64, 128)
FEWEST = 64  # queries; a program has 128, and few of them (decode) are another kernel's work


def unsupported(query_BSNH, key_BTKH, value_BTKH) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del key_BTKH, value_BTKH
    if reason := dispatch.why_not_hopper():
        return reason
    if query_BSNH.dtype != jnp.bfloat16:
        return f"it takes bfloat16, got {query_BSNH.dtype.name}"
    if query_BSNH.shape[-1] not in HEAD_DIMS:
        return f"head_dim must be one of {HEAD_DIMS}, got {query_BSNH.shape[-1]}"
    if query_BSNH.shape[1] < FEWEST:
        return f"it takes at least {FEWEST} queries a row, got {query_BSNH.shape[1]}"
    return None


def attend(query, key, value, query_tags: Tags, key_tags: Tags, dtype):
    """Contract in the package's docstring."""
    S = query.shape[1]
    query, key, value = (filled_up(x, TILE) for x in (query, key, value))
    queries, keys = filled_tags(query_tags, TILE, -1), filled_tags(key_tags, TILE, -2)
    spans = key_spans(queries, TILE, keys, gpu_forward.KEYS)
    out, lse = gpu_forward.attend(query, key, value, queries, keys, spans, dtype)
    return out[:, :S], jnp.swapaxes(lse, 1, 2)[:, :S]


def attend_gradient(query, key, value, query_tags: Tags, key_tags: Tags, whole, dtype):
    """Contract in the package's docstring."""
    S, T = query.shape[1], key.shape[1]
    d_out, lse, delta = whole
    per_query = [jnp.swapaxes(filled_up(x.astype(jnp.float32), TILE), 1, 2) for x in (lse, delta)]
    arrays = (*(filled_up(x, TILE) for x in (query, key, value, d_out.astype(query.dtype))), *per_query)
    queries, keys = filled_tags(query_tags, TILE, -1), filled_tags(key_tags, TILE, -2)
    block = gpu_backward.BLOCK
    spans = key_spans(queries, TILE, keys, block), query_spans(queries, block, keys, TILE)
    dq = gpu_query_gradient.query_gradient(arrays, queries, keys, spans[0], dtype)
    dk, dv = gpu_key_gradients.key_gradients(arrays, queries, keys, spans[1], dtype)
    return dq[:, :S], dk[:, :T], dv[:, :T]
