"""Softmax attention with grouped heads over packed documents: masks come from positions and segments.

An implementation is a module with four functions; `api.py` says what they compute.

    unsupported(query_BSNH, key_BTKH, value_BTKH) -> str | None     why it cannot, or None if it can
    softmax_attention(query, key, value, query_index, key_index)    differentiable
    attend(query, key, value, query_index, key_index)
    attend_gradient(query, key, value, query_index, key_index, whole)
"""

from pallas_kernels.softmax_attention.api import attend, attend_gradient, merge, softmax_attention

__all__ = ["attend", "attend_gradient", "merge", "softmax_attention"]
