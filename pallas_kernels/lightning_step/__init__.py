"""The decode step of a lightning layer between its two products: `lightning_step` (`api.py`).

An implementation is a module with two functions; `api.py` has checked the arguments. `reference` is NumPy.

    unsupported(*arguments) -> str | None              why it cannot, or None
    forward(*arguments) -> (o_RW, u_RW, state_LBNHH)   projected_RF, state_LBNHH, slope_LN, weight_LNH, active_B, layer

With states that are read and not written it is `lightning_ring_step`, and then `lightning_fold` (`ring.py`).
"""

from pallas_kernels.lightning_step.api import lightning_step
from pallas_kernels.lightning_step.ring import RING, empty_rings, lightning_fold, lightning_ring_step

__all__ = ["RING", "empty_rings", "lightning_fold", "lightning_ring_step", "lightning_step"]
