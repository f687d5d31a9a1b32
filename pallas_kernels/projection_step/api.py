"""The products of a decode step's few rows with the matrices of one layer, the public operation: reading them is all.

    y = x [W_1 | W_2 | ...]

Letters: P parts, R rows, D their width, L layers, F columns. Matrices stay in their stack of layers, each in its own,
and nothing is copied out of it. No gradient: it is for decoding.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch

OPERATION = dispatch.Operation(
    "projection_step", {name: f"pallas_kernels.projection_step.{name}" for name in ("tpu", "gpu", "xla")}
)


@jax.named_scope("projection_step")
def projection_step(
    x_RD: jax.Array,
    matrices: Sequence[jax.Array],
    layer: jax.Array,
    *,
    dtype: jnp.dtype | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """y (R, sum of F), accumulated in float32, in `dtype` (None: x's).

    Args:
      x_RD: (R, D), bfloat16 or float32; R as `few_rows.filled_up` gives it, rows that only fill up may be anything.
      matrices: (L, D, F) each, of an F of its own, in x's dtype.
      layer: int32 (1,), from 0 to L - 1.
      implementation: "tpu", "gpu" (NVIDIA Hopper), "xla", or None for the first of these that can.

    Raises:
      ValueError: a shape or dtype is not as above.
      Unsupported: the named implementation cannot take these arguments on this device.
    """
    _check(x_RD, matrices, layer)
    arguments = x_RD, list(matrices), layer
    name = dispatch.choose(OPERATION, implementation, *arguments)
    return OPERATION.module(name).forward(*arguments, jnp.dtype(dtype or x_RD.dtype))


@jax.named_scope("projection_step")
def projection_parts(
    x_RD: jax.Array, matrix_LDF: jax.Array, layer: jax.Array, *, implementation: str | None = None
) -> jax.Array:
    """Float32 (P, R, F), whose sum over P is x W: who reads it next adds it up. Arguments as of `projection_step`."""
    _check(x_RD, [matrix_LDF], layer)
    name = dispatch.choose(OPERATION, implementation, x_RD, [matrix_LDF], layer)
    return OPERATION.module(name).parts(x_RD, matrix_LDF, layer)


def _check(x, matrices, layer) -> None:
    if x.ndim != 2 or 0 in x.shape or x.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"x must be (R, D) in bfloat16 or float32, got {_type(x)}")
    if not matrices:
        raise ValueError("matrices must be one or more, got none")
    for matrix in matrices:
        if matrix.ndim != 3 or matrix.shape[1] != x.shape[1] or matrix.dtype != x.dtype:
            raise ValueError(f"a matrix must be (L, D={x.shape[1]}, F) in {x.dtype.name} as x, got {_type(matrix)}")
    if layer.shape != (1,) or layer.dtype != jnp.int32:
        raise ValueError(f"layer must be int32[1], got {_type(layer)}")


def _type(array) -> str:
    return f"{array.dtype.name}{list(array.shape)}"
