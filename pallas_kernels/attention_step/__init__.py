"""The decode step of a softmax layer between its two products: `attention_step` (`api.py`).

An implementation is a module with two functions; `api.py` has checked the arguments. `reference` is NumPy.

    unsupported(*arguments) -> str | None    why it cannot, or None
    forward(*arguments) -> (out_RW, keys_LBKTH, values_LBKTH)    projected_RF, angle_BA, keys_LBKTH, values_LBKTH, told
"""

from pallas_kernels.attention_step.api import attention_step

__all__ = ["attention_step"]
