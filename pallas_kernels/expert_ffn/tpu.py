"""Experts for TPUs: three of XLA's own grouped products (`grouped_matmul/tpu.py`), with SwiGLU fused between them."""

from pallas_kernels.expert_ffn import composed
from pallas_kernels.grouped_matmul import tpu as grouped


def unsupported(x_RD, weights, group_sizes_E, weight_R, capacity, multiple) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del weight_R
    return grouped.unsupported(x_RD, weights[0], group_sizes_E, capacity, multiple)


def forward(x_RD, weights, group_sizes_E, weight_R, capacity, multiple):
    """Contract in the package's docstring. Nothing is padded, so `capacity` bounds nothing here."""

    def multiply(x, matrices, sizes):
        return grouped.forward(x, matrices, sizes, capacity, multiple)

    return composed.forward(multiply, x_RD, weights, group_sizes_E, weight_R)
