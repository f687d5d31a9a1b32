"""What a kernel's products come to, said where it is called, for who counts a traced program (`mm01_jax.plan`).

A kernel's loops may have lengths that are data, and a GPU kernel's jaxpr has no matmul in it. jax's own `cost_estimate`
would be the place, but `plgpu.kernel` takes none before jax 0.12.
"""

import re

import jax

_SCOPE, _PART = re.compile(r"kernel_flops_(\d+)"), re.compile(r"kernel_percent_(\d+)")


def flops(count: int) -> jax.named_scope:
    """A scope for the kernel's call, and nothing else in it."""
    return jax.named_scope(f"kernel_flops_{count}")


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
