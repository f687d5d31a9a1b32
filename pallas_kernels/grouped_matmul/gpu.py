"""Grouped matmul for NVIDIA Hopper (Pallas Mosaic GPU: TMA and wgmma), bfloat16.

No row is moved and nothing is padded to a capacity.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.grouped_matmul import gpu_int8, gpu_rows, gpu_tiles, gpu_weights
from pallas_kernels.int8 import Int8, shape_of

MULTIPLE = gpu_tiles.TILE  # of every group's size: no tile then has rows of two experts


def unsupported(x_RD, weights_EDF, group_sizes_E, capacity, multiple) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del group_sizes_E, capacity
    if reason := dispatch.why_not_hopper():
        return reason
    if x_RD.dtype != jnp.bfloat16:
        return f"it takes bfloat16, got {x_RD.dtype.name}"
    _, D, F = shape_of(weights_EDF)
    if D % gpu_tiles.TILE or F % gpu_tiles.TILE:
        return f"widths must be multiples of {gpu_tiles.TILE}, got D={D}, F={F}"
    if multiple % MULTIPLE or x_RD.shape[0] % MULTIPLE:
        return f"groups and rows must be multiples of {MULTIPLE}, got {multiple} and {x_RD.shape[0]}"
    return None


def forward(x_RD, weights_EDF, group_sizes_E, capacity, multiple):
    """Contract in the package's docstring. Nothing is padded, so `capacity` bounds nothing here."""
    del capacity, multiple
    if isinstance(weights_EDF, Int8):
        return gpu_int8.multiply(x_RD, weights_EDF, gpu_tiles.experts_of_tiles(group_sizes_E, x_RD.shape[0]))
    return _multiply(x_RD, weights_EDF, group_sizes_E)


@jax.custom_vjp
def _multiply(x_RD, weights_EDF, group_sizes_E):
    return _forward(x_RD, weights_EDF, group_sizes_E)[0]


def _forward(x_RD, weights_EDF, group_sizes_E):
    experts = gpu_tiles.experts_of_tiles(group_sizes_E, x_RD.shape[0])
    out_RF = gpu_rows.multiply(x_RD, weights_EDF, experts, transposed=False)
    return out_RF, (x_RD, weights_EDF, group_sizes_E)


def _backward(residuals, d_RF):
    x_RD, weights_EDF, group_sizes_E = residuals
    experts = gpu_tiles.experts_of_tiles(group_sizes_E, x_RD.shape[0])
    dx_RD = gpu_rows.multiply(d_RF, weights_EDF, experts, transposed=True)
    return dx_RD, gpu_weights.outer(x_RD, d_RF, group_sizes_E), None


_multiply.defvjp(_forward, _backward)
