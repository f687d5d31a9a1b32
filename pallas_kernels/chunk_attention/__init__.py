"""Softmax attention of a chunk of queries over a cache of keys and values that is read where it lies.

An implementation is a module with two functions; `api.py` has checked the arguments.

    unsupported(query_BSNH, keys) -> str | None                                          why it cannot, or None
    attend(query_BSNH, keys, values, layer, first_B, count_B) -> out_BSNH
"""

from pallas_kernels.chunk_attention.api import chunk_attention

__all__ = ["chunk_attention"]
