"""SwiGLU of each row by the experts that it chose, weighted and summed, for few rows; the public operation.

    y_r = sum over choices a of w_ar W_down( silu(W_gate x_r) * (W_up x_r) )      the matrices of expert e_ar

Letters: P parts, R rows, A choices of each, C columns (`few_rows.columns`), L layers, E experts, D a row's width, F
theirs. The matrices stay in their stack of layers, and of those only the experts that some row chose are read. No
gradient: it is for decoding.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.few_rows import Placed, columns, filled_up
from pallas_kernels.int8 import Int8, check_stack, shape_of

OPERATION = dispatch.Operation(
    "expert_step", {name: f"pallas_kernels.expert_step.{name}" for name in ("tpu", "gpu", "xla")}
)
Matrices = tuple[jax.Array | Int8, jax.Array | Int8, jax.Array | Int8]


@jax.named_scope("expert_step")
def expert_step(
    x_RD: jax.Array,
    choice_AC: jax.Array,
    weight_AC: jax.Array,
    matrices: Matrices,
    layer: jax.Array,
    *,
    rows: int,
    implementation: str | None = None,
) -> jax.Array | Placed:
    """Float32 (P, R, D) or as `Placed`, whose sum over P is y: who reads them adds them up. A row's bits do not follow
    from others.

    Args:
      x_RD: (R, D), bfloat16 or float32, R = `few_rows.filled_up(rows)`. Of rows after the first `rows`, and of columns
        of the choices, the arguments and results may be anything.
      choice_AC: int32 experts of each row, all different; E: none, of a single row then all of them. weight_AC:
        float32, 0 where there is none.
      matrices: gate (L, E, D, F), up (L, E, D, F), down (L, E, F, D), in x's dtype or as Int8.
      layer: int32 (1,), from 0 to L - 1.
      implementation: "tpu", "gpu" (NVIDIA Hopper), "xla", or None for the first of these that can.

    Raises:
      ValueError: a shape or dtype is not as above.
      Unsupported: the named implementation cannot take these arguments on this device.
    """
    _check(x_RD, choice_AC, weight_AC, matrices, layer, rows)
    arguments = x_RD, choice_AC, weight_AC, matrices, layer, rows
    return OPERATION.module(dispatch.choose(OPERATION, implementation, *arguments)).forward(*arguments)


def _check(x, choice, weight, matrices: Matrices, layer, rows: int) -> None:
    if x.ndim != 2 or x.shape[0] != filled_up(rows) or x.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"x must be ({filled_up(rows)}, D) in bfloat16 or float32, got {_type(x)}")
    D, (L, E, _, F) = x.shape[1], shape_of(matrices[0])
    for name, matrix, shape in zip(("gate", "up", "down"), matrices, ((D, F), (D, F), (F, D)), strict=True):
        check_stack(name, matrix, (L, E, *shape), x.dtype)
    wanted = (
        ("choice", choice, (*choice.shape[:1], columns(rows)), jnp.int32),
        ("weight", weight, choice.shape, jnp.float32),
        ("layer", layer, (1,), jnp.int32),
    )
    for name, array, shape, dtype in wanted:
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{name} must be {jnp.dtype(dtype).name}{list(shape)} as x and gate, got {_type(array)}")


def _type(array) -> str:
    return f"{array.dtype.name}{list(array.shape)}"
