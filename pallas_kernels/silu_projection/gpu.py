"""A product and its SiLU for NVIDIA Hopper, bfloat16: the grouped matmul of one group, SiLU where it is accumulated."""

import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.grouped_matmul import gpu_rows
from pallas_kernels.grouped_matmul.gpu_tiles import TILE


def unsupported(x_RD, weight_DF) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    if reason := dispatch.why_not_hopper():
        return reason
    if x_RD.dtype != jnp.bfloat16:
        return f"it takes bfloat16, got {x_RD.dtype.name}"
    (R, D), F = x_RD.shape, weight_DF.shape[1]
    if R % TILE or D % TILE or F % TILE:
        return f"rows and widths must be multiples of {TILE}, got R={R}, D={D}, F={F}"
    return None


def forward(x_RD, weight_DF):
    """Contract in the package's docstring."""
    only = jnp.zeros((x_RD.shape[0] // TILE,), jnp.int32)
    return gpu_rows.multiply_sum([(x_RD, weight_DF[None])], only, transposed=False, silu=True)
