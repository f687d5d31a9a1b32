"""Softmax attention of one token a row over a cache: `attention_step` (`api.py`).

An implementation is a module with two functions; `api.py` has checked the arguments. `reference` is NumPy.

    unsupported(query_BKGH, keys_LBKTH, values_LBKTH, count_B, layer) -> str | None     why it cannot, or None
    forward(query_BKGH, keys_LBKTH, values_LBKTH, count_B, layer) -> out_RW
"""

from pallas_kernels.attention_step.api import attention_step

__all__ = ["attention_step"]
