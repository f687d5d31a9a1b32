"""What a kernel's products come to, said where it is called.

XLA's scheduler is told by `pallas_call(cost_estimate=)` (TPU). Who counts a traced program (`mm01_jax.plan`) reads a
scope: a kernel's loops may have lengths that are data, a GPU kernel's jaxpr has no matmul in it, and `plgpu.kernel`
takes no estimate before jax 0.12.
"""

import re

import jax
from jax.experimental import pallas as pl

_SCOPE, _PART = re.compile(r"kernel_flops_(\d+)"), re.compile(r"kernel_percent_(\d+)")


def flops(count: int) -> jax.named_scope:
    """A scope for the kernel's call, and nothing else in it."""
    return jax.named_scope(f"kernel_flops_{count}")


def cost(flops: int, *arrays: jax.Array | jax.ShapeDtypeStruct) -> pl.CostEstimate:
    """For the compiler: the kernel's products, and every array that it reads or writes once."""
    moved = sum(array.size * array.dtype.itemsize for array in arrays)
    return pl.CostEstimate(flops=flops, bytes_accessed=moved, transcendentals=0)


def percent(share: int) -> jax.named_scope:
    """A scope for calls of kernels that will do so much of what they declare."""
    return jax.named_scope(f"kernel_percent_{share}")


def flops_of(eqn) -> float | None:
    """What an equation declares; None where it declares nothing."""
    stack = str(eqn.source_info.name_stack)
    if not (match := _SCOPE.search(stack)):
        return None
    part = _PART.search(stack)
    return int(match[1]) * (int(part[1]) / 100 if part else 1)
