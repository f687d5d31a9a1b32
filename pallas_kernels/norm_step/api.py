"""Sum, residual, norm and router of a decode step, the public operation (docs/model.md A.2, A.3, A.6).

    y = sum of parts, over rms(o) where that norm is still due      h = alpha x + beta y      out = weight * h / rms(h)
    p = softmax(router out), the largest of them over their sum

Letters: P parts, R rows, D their width, W that of o, L layers, E experts, A choices, C columns as `few_rows.columns`.
All between the arguments and the results is float32. No gradient: it is for decoding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.few_rows import Placed, columns

OPERATION = dispatch.Operation(
    "norm_step", {name: f"pallas_kernels.norm_step.{name}" for name in ("tpu", "gpu", "xla")}
)


class Norm(NamedTuple):
    """weight_LD of the norms of a stack of layers, int32 layer (1,), and the numbers of the formula."""

    weight_LD: jax.Array
    layer: jax.Array
    alpha: float
    beta: float
    eps: float


class Mixed(NamedTuple):
    """o (R, W) in x's dtype, by whose root mean square the sum of the parts is divided."""

    o_RW: jax.Array
    eps: float


class Router(NamedTuple):
    """The routers of a stack, transposed: (L, E, D) in x's dtype; bool active_B, rows that choose; how many choices."""

    matrix_LED: jax.Array
    layer: jax.Array
    active_B: jax.Array
    choices: int


@jax.named_scope("norm_step")
def norm_step(
    x_RD: jax.Array,
    parts_PRD: jax.Array | Placed,
    norm: Norm,
    *,
    rows: int,
    mixed: Mixed | None = None,
    router: Router | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, ...]:
    """(out (R, D),), and with a router choice int32 (A, C), weight float32 (A, C): the best first, of equal ones the
    lower index; E and 0 for rows that are not active.

    Args:
      x_RD: (R, D), bfloat16 or float32, R = `few_rows.filled_up(rows)`. Of rows after the first `rows`, and of columns
        of the choices, the results may be anything.
      parts_PRD: float32; or (P, R, D) as `Placed`.
      implementation: "tpu", "gpu" (NVIDIA Hopper), "xla", or None for the first of these that can.

    Raises:
      ValueError: a shape or dtype is not as above.
      Unsupported: the named implementation cannot take these arguments on this device.
    """
    _check(x_RD, norm, mixed, router)
    _check_parts(x_RD, parts_PRD, rows)
    arguments = x_RD, parts_PRD, norm, mixed, router
    name = dispatch.choose(OPERATION, implementation, *arguments)
    return tuple(OPERATION.module(name).forward(*arguments, rows))


def _check_parts(x, parts, rows: int) -> None:
    R, D = x.shape
    if isinstance(parts, Placed):
        (lines, place), C = parts, columns(rows)
        if lines.ndim != 2 or lines.shape[1] != D or lines.dtype != jnp.float32:
            raise ValueError(f"lines of parts must be float32[S, {D}] to go with x, got {_type(lines)}")
        if place.ndim != 2 or place.shape[1] != C or place.dtype != jnp.int32:
            raise ValueError(f"places of parts must be int32[P, {C}] to go with x, got {_type(place)}")
    elif parts.ndim != 3 or parts.shape[1:] != (R, D) or parts.dtype != jnp.float32:
        raise ValueError(f"parts must be float32[P, {R}, {D}] to go with x, got {_type(parts)}")


def _check(x, norm: Norm, mixed: Mixed | None, router: Router | None) -> None:
    if x.ndim != 2 or 0 in x.shape or x.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"x must be (R, D) in bfloat16 or float32, got {_type(x)}")
    R, D = x.shape
    if norm.weight_LD.ndim != 2 or norm.weight_LD.shape[1] != D or norm.weight_LD.dtype != x.dtype:
        raise ValueError(f"the norm's weight must be (L, {D}) in {x.dtype.name}, got {_type(norm.weight_LD)}")
    if mixed is not None and (mixed.o_RW.ndim != 2 or mixed.o_RW.shape[0] != R or mixed.o_RW.dtype != x.dtype):
        raise ValueError(f"o must be ({R}, W) in {x.dtype.name} to go with x, got {_type(mixed.o_RW)}")
    if router is not None:
        matrix = router.matrix_LED
        if matrix.ndim != 3 or matrix.shape[2] != D or matrix.dtype != x.dtype or router.choices > matrix.shape[1]:
            wanted = f"(L, E, {D}) in {x.dtype.name}, E at least the {router.choices} choices"
            raise ValueError(f"the router must be {wanted}, got {_type(matrix)}")


def _type(array) -> str:
    return f"{array.dtype.name}{list(array.shape)}"
