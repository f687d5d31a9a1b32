"""Softmax attention for NVIDIA Hopper (Pallas Mosaic GPU: TMA and wgmma), bfloat16: `gpu_forward`, and what
`gpu_backward` names.
"""

import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.softmax_attention import gpu_forward, gpu_key_gradients, gpu_parts, gpu_query_gradient
from pallas_kernels.softmax_attention.gpu_blocks import HALF, TILE
from pallas_kernels.softmax_attention.masking import Tags, filled_tags, filled_up, key_spans, query_spans, work_of
from pallas_kernels.softmax_attention.whole import Whole, has_delta, with_delta

HEAD_DIMS = (64, 128)
STRIPS = {64: 3, 128: 2}
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
    S, strips = query.shape[1], STRIPS[query.shape[3]] if dtype == query.dtype else 2
    query, key, value = (filled_up(x, TILE) for x in (query, key, value))
    queries, keys = filled_tags(query_tags, TILE, -1), filled_tags(key_tags, TILE, -2)
    work = work_of(key_spans(queries, HALF, keys, HALF), strips)
    out, lse = gpu_forward.attend(query, key, value, queries, keys, work, dtype)
    return out[:, :S], jnp.swapaxes(lse, 1, 2)[:, :S]


def attend_gradient(query, key, value, query_tags: Tags, key_tags: Tags, whole: Whole, dtype):
    """Contract in the package's docstring."""
    (B, S, N, H), (T, K) = query.shape, key.shape[1:3]
    queries, keys = filled_tags(query_tags, TILE, -1), filled_tags(key_tags, TILE, -2)
    sizes = B, K, N // K, queries[0].shape[1], keys[0].shape[1]
    parts = gpu_parts.parts_of(*sizes) if gpu_parts.pays(K, H) else []
    d_out, lse, last = whole = with_delta(whole) if parts else whole

    def per_query(x):
        return jnp.swapaxes(filled_up(x.astype(jnp.float32), TILE), 1, 2)

    arrays = (*(filled_up(x, TILE) for x in (query, key, value, d_out.astype(query.dtype))), per_query(lse))
    last = per_query(last) if has_delta(whole) else filled_up(last, TILE)  # delta, or the output
    of_queries = key_spans(queries, HALF, keys, HALF)
    of_keys = query_spans(queries, HALF, keys, HALF, of_queries if parts else None)
    if parts:
        dq, dk, dv = gpu_parts.gradients(parts, (*arrays, last), (queries, keys), (of_queries, of_keys), dtype)
    else:
        works = work_of(of_queries), work_of(of_keys)
        dq, delta = gpu_query_gradient.query_gradient((*arrays, last), queries, keys, works[0], dtype)
        dk, dv = gpu_key_gradients.key_gradients((*arrays, delta), queries, keys, works[1], dtype)
    return dq[:, :S], dk[:, :T], dv[:, :T]
