"""Grouped matmul, the public operation: rows sorted by expert, each times its expert's matrix.

Letters: R rows after dispatch, D width of a row, E experts, F width of the result.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.int8 import Int8, check_matrices
from pallas_kernels.varying import vary_alike

OPERATION = dispatch.Operation(
    "grouped_matmul",
    {name: f"pallas_kernels.grouped_matmul.{name}" for name in ("tpu", "gpu", "xla")},
)

FEW = 16  # rows for each expert from which on the Hopper kernel is taken


def row_multiple(num_rows: int, x_dtype: jax.typing.DTypeLike, widths_EDF: tuple[int, int, int]) -> int:
    """What every group's size should be a multiple of, for the fastest implementation here: lay rows out so.

    128 where the Hopper kernel can take the widths and there are 16 rows of every expert, else 1: a few rows (decode)
    cost what reading the weights costs, and XLA reads a layer's where they stand in a stack of layers. XLA multiplies
    as many rows by every expert as any may have: of 256 tokens and 32 experts all of them, 64 tiles where 36 suffice.
    """
    if dispatch.elsewhere("gpu"):
        return 1
    gpu, (E, D, _) = OPERATION.module("gpu"), widths_EDF
    rows, weights = jax.ShapeDtypeStruct((gpu.MULTIPLE, D), x_dtype), jax.ShapeDtypeStruct(widths_EDF, x_dtype)
    fits = num_rows >= E * FEW and not gpu.unsupported(rows, weights, None, None, gpu.MULTIPLE)
    return gpu.MULTIPLE if fits else 1


def grouped_matmul(
    x_RD: jax.Array,
    weights_EDF: jax.Array | Int8,
    group_sizes_E: jax.Array,
    *,
    capacity: int,
    multiple: int = 1,
    implementation: str | None = None,
) -> jax.Array:
    """`out[r] = x[r] @ weights[e]` for the rows r of group e: the first `group_sizes[0]` rows, the next, and so on.

    Args:
      x_RD: (R, D), bfloat16 or float32, rows sorted by group. Rows after the last group give 0 and get gradient 0.
      weights_EDF: (E, D, F) in x's dtype, or as Int8, which has no gradient.
      group_sizes_E: (E,) int32, >= 0, their sum <= R.
      capacity: a bound on every group's size; a larger group's rows beyond it may give 0. Callers count overflow.
      multiple: the caller's word that every group's size is one of this (`row_multiple`). A group may be filled up with
        rows of 0.
      implementation: "tpu", "gpu" (NVIDIA Hopper), "xla", or None for the first of these that can.

    Returns:
      (R, F) in x's dtype, accumulated in float32. Differentiable in x and weights.

    Raises:
      ValueError: a shape, dtype or the capacity is not as above.
      Unsupported: the named implementation cannot take these arguments on this device.
    """
    _check(x_RD, weights_EDF, group_sizes_E, capacity)
    leaves, tree = jax.tree.flatten((x_RD, weights_EDF, group_sizes_E))
    arrays = jax.tree.unflatten(tree, vary_alike(*leaves))
    name = dispatch.choose(OPERATION, implementation, *arrays, capacity, multiple)
    return OPERATION.module(name).forward(*arrays, capacity, multiple)


def _check(x, weights, group_sizes, capacity) -> None:
    if x.ndim != 2 or x.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"x must be (R, D) in bfloat16 or float32, got {x.dtype.name}{list(x.shape)}")
    shape = check_matrices("weights", weights, x)
    if group_sizes.shape != shape[:1] or group_sizes.dtype != jnp.int32:
        got = f"{group_sizes.dtype.name}{list(group_sizes.shape)}"
        raise ValueError(f"group_sizes must be int32[{shape[0]}] to go with weights, got {got}")
    if capacity < 1:
        raise ValueError(f"capacity={capacity} must be at least 1")
