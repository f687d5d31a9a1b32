"""What stands between two products of a decode step: sum, residual, norm, router: `norm_step` (`api.py`).

An implementation is a module with two functions; `api.py` has checked the arguments. `reference` is NumPy.

    unsupported(x_RD, parts_PRD, norm, mixed, router) -> str | None     why it cannot, or None
    forward(x_RD, parts_PRD, norm, mixed, router, rows) -> (out, choice, weight), or (out,) without a router
"""

from pallas_kernels.norm_step.api import Mixed, Norm, Router, norm_step

__all__ = ["Mixed", "Norm", "Router", "norm_step"]
