"""RMSNorm behind a sigmoid gate, the public operation (docs/model.md A.4, 3.)

    n = x / sqrt(mean(x^2) + eps)      y = sigmoid(gate) * weight * n

Letters: R rows, W their width. Everything between the arguments and the results is float32. This file checks arguments,
chooses an implementation and owns the gradient rule, whose residuals are the inputs:

    dn = dy sigmoid(gate) weight       dx = (dn - n mean(dn n)) / sqrt(mean(x^2) + eps)
    d gate = dn n (1 - sigmoid(gate))  d weight = sum over rows of dy sigmoid(gate) n
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.varying import vary_alike

OPERATION = dispatch.Operation(
    "gated_norm", {name: f"pallas_kernels.gated_norm.{name}" for name in ("tpu", "gpu", "xla")}
)


def gated_norm(
    x_RW: jax.Array, gate_RW: jax.Array, weight_W: jax.Array, eps: float, *, implementation: str | None = None
) -> jax.Array:
    """y (R, W) in x's dtype; differentiable in x, gate and weight.

    Args:
      x_RW, gate_RW: (R, W), both bfloat16 or both float32. weight_W: (W,) in their dtype.
      implementation: "tpu", "gpu" (NVIDIA Hopper), "xla", or None for the first of these that can.

    Raises:
      ValueError: a shape or dtype is not as above.
      Unsupported: the named implementation cannot take these arguments on this device.
    """
    _check(x_RW, gate_RW, weight_W)
    arrays = vary_alike(x_RW, gate_RW, weight_W)
    return _differentiable(dispatch.choose(OPERATION, implementation, *arrays), eps, *arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _differentiable(name, eps, x_RW, gate_RW, weight_W):
    return OPERATION.module(name).forward(x_RW, gate_RW, weight_W, eps)


def _forward(name, eps, *arrays):
    return _differentiable(name, eps, *arrays), arrays


def _backward(name, eps, arrays, dy_RW):
    dx, d_gate, d_weight = OPERATION.module(name).backward(*arrays, eps, dy_RW)
    return dx, d_gate, d_weight.astype(arrays[2].dtype)


_differentiable.defvjp(_forward, _backward)


def _check(x, gate, weight) -> None:
    if x.ndim != 2 or 0 in x.shape or x.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"x must be (R, W) in bfloat16 or float32, got {x.dtype.name}{list(x.shape)}")
    for name, array, shape in (("gate", gate, x.shape), ("weight", weight, x.shape[1:])):
        if array.shape != shape or array.dtype != x.dtype:
            got = f"{array.dtype.name}{list(array.shape)}"
            raise ValueError(f"{name} must be {x.dtype.name}{list(shape)} to go with x, got {got}")
