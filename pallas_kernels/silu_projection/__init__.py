"""A product and its SiLU, y = silu(x W): no pass over memory lies between the two.

An implementation is a module with two functions; `api.py` has checked the arguments.

    unsupported(x_RD, weight_DF) -> str | None      why it cannot, or None
    forward(x_RD, weight_DF) -> y_RF                in x's dtype
"""

from pallas_kernels.silu_projection.api import silu_projection

__all__ = ["silu_projection"]
