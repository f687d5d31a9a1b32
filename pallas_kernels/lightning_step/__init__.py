"""The decode step of a lightning layer between its two products: `lightning_step` (`api.py`).

An implementation is a module with two functions; `api.py` has checked the arguments. `reference` is NumPy.

    unsupported(*arguments) -> str | None              why it cannot, or None
    forward(*arguments) -> (o_RW, u_RW, state_LBNHH)   projected_RF, state_LBNHH, slope_LN, weight_LNH, active_B, layer
"""

from pallas_kernels.lightning_step.api import lightning_step

__all__ = ["lightning_step"]
