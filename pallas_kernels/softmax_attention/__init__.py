"""Softmax attention with grouped heads over packed documents: masks come from positions and documents.

An implementation is a module with three functions; `api.py` says what they compute and has the only gradient rule.

    unsupported(query_BSNH, key_BTKH, value_BTKH) -> str | None                why it cannot, or None if it can
    attend(query, key, value, query_tags, key_tags, dtype) -> (out in `dtype`, logsumexp)
    attend_gradient(query, key, value, query_tags, key_tags, whole, dtype) -> gradients in `dtype`; `whole.py`
"""

from pallas_kernels.softmax_attention.api import (
    attend,
    attend_gradient,
    merge,
    passes_over_what_is_hidden,
    softmax_attention,
)
from pallas_kernels.softmax_attention.masking import tied
from pallas_kernels.softmax_attention.whole import delta

__all__ = [
    "attend",
    "attend_gradient",
    "delta",
    "merge",
    "passes_over_what_is_hidden",
    "softmax_attention",
    "tied",
]
