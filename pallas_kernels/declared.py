"""What a kernel's products come to, said where it is called.

XLA's scheduler is told by `pallas_call(cost_estimate=)` (TPU). Who counts a traced program (`mm01_jax.plan`) reads a
scope: a kernel's loops may have lengths that are data, a GPU kernel's jaxpr has no matmul in it, and `plgpu.kernel`
takes no estimate before jax 0.12.
"""

import re

import jax
from jax.experimental import pallas as pl

_SCOPE, _PART = re.compile(r"kernel_flops_(\d+)(?:_of_(\d+)_rows)?"), re.compile(r"kernel_percent_(\d+)")


def flops(count: int, rows: int | None = None) -> jax.named_scope:
    """A scope for the kernel's call, and nothing else in it.

    rows: of a grouped matmul's buffer, of which it passes over those that hold nothing.
    """
    return jax.named_scope(f"kernel_flops_{count}" + (f"_of_{rows}_rows" if rows else ""))


def cost(flops: int, *arrays: jax.Array | jax.ShapeDtypeStruct) -> pl.CostEstimate:
    """For the compiler: the kernel's products, and every array that it reads or writes once."""
    moved = sum(array.size * array.dtype.itemsize for array in arrays)
    return pl.CostEstimate(flops=flops, bytes_accessed=moved, transcendentals=0)


def percent(share: int) -> jax.named_scope:
    """A scope for calls of kernels that will do so much of what they declare."""
    return jax.named_scope(f"kernel_percent_{share}")


def flops_of(eqn, used_rows: int | None = None) -> float | None:
    """What an equation declares; None where it declares nothing. used_rows: of a grouped matmul's buffer; None: all."""
    stack = str(eqn.source_info.name_stack)
    if not (match := _SCOPE.search(stack)):
        return None
    part = _PART.search(stack)
    used = min(1.0, used_rows / int(match[2])) if used_rows and match[2] else 1.0
    return int(match[1]) * used * (int(part[1]) / 100 if part else 1)
