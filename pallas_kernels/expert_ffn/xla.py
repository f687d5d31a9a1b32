"""Experts as padded batched matmuls (`grouped_matmul/xla.py`). Runs everywhere."""

from pallas_kernels.expert_ffn import composed
from pallas_kernels.grouped_matmul import xla as grouped


def unsupported(x_RD, weights, group_sizes_E, weight_R, capacity, multiple) -> str | None:
    """Never: it runs everywhere."""
    del x_RD, weights, group_sizes_E, weight_R, capacity, multiple


def forward(x_RD, weights, group_sizes_E, weight_R, capacity, multiple):
    """Contract in the package's docstring. Rows of a group beyond `capacity` give 0."""

    def multiply(x, matrices, sizes):
        return grouped.forward(x, matrices, sizes, capacity, multiple)

    return composed.forward(multiply, x_RD, weights, group_sizes_E, weight_R)
