"""Grouped matmul: every expert's matmul over its own rows.

An implementation is a module with two functions; `api.py` has checked the arguments.

    unsupported(x_RD, weights_EDF, group_sizes_E, capacity, multiple) -> str | None     why it cannot, or None
    forward(x_RD, weights_EDF, group_sizes_E, capacity, multiple) -> out_RF      differentiable in x and weights
"""

from pallas_kernels.grouped_matmul.api import grouped_matmul, row_multiple

__all__ = ["grouped_matmul", "row_multiple"]
