"""Experts of the few rows of a decode step: `expert_step` (`api.py`).

An implementation is a module with two functions; `api.py` has checked the arguments. `reference` is NumPy.

    unsupported(x_RD, choice_AC, weight_AC, matrices, layer, rows) -> str | None    why it cannot, or None
    forward(x_RD, choice_AC, weight_AC, matrices, layer, rows) -> parts_PRD         float32, or `Placed`; to be added up
"""

from pallas_kernels.expert_step.api import expert_step

__all__ = ["expert_step"]
