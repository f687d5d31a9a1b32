"""SwiGLU of each row by its expert, the public operation: rows sorted by expert, three matrices an expert.

    y = W_down( w * silu(W_gate x) * (W_up x) )

Letters: R rows after dispatch, D width of a row, E experts, F their width; w is a row's own factor (its router weight).
"""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.varying import vary_alike

OPERATION = dispatch.Operation(
    "expert_ffn",
    {name: f"pallas_kernels.expert_ffn.{name}" for name in ("tpu", "gpu", "xla")},
)
Weights = tuple[jax.Array, jax.Array, jax.Array]


def expert_ffn(
    x_RD: jax.Array,
    weights: Weights,
    group_sizes_E: jax.Array,
    weight_R: jax.Array | None = None,
    *,
    capacity: int,
    multiple: int = 1,
    implementation: str | None = None,
) -> jax.Array:
    """y (R, D) in x's dtype; differentiable in x, the weights and `weight_R`.

    Args:
      x_RD: (R, D), bfloat16 or float32, rows sorted by group. Rows after the last group give 0 and get gradient 0.
      weights: gate (E, D, F), up (E, D, F), down (E, F, D), in x's dtype.
      group_sizes_E: (E,) int32, >= 0, their sum <= R.
      weight_R: (R,) float32, each row's factor; None is 1.
      capacity, multiple: as in `grouped_matmul`.
      implementation: "tpu", "gpu" (NVIDIA Hopper), "xla", or None for the first of these that can.

    Raises:
      ValueError: a shape or dtype is not as above.
      Unsupported: the named implementation cannot take these arguments on this device.
    """
    _check(x_RD, weights, group_sizes_E, weight_R)
    x_RD, gate, up, down, group_sizes_E, weight_R = vary_alike(x_RD, *weights, group_sizes_E, weight_R)
    arguments = x_RD, (gate, up, down), group_sizes_E, weight_R, capacity, multiple
    return OPERATION.module(dispatch.choose(OPERATION, implementation, *arguments)).forward(*arguments)


def _check(x, weights: Weights, group_sizes, weight) -> None:
    if x.ndim != 2 or x.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"x must be (R, D) in bfloat16 or float32, got {x.dtype.name}{list(x.shape)}")
    gate, D = weights[0], x.shape[1]
    if gate.ndim != 3 or gate.shape[1] != D or gate.dtype != x.dtype:
        raise ValueError(f"gate must be (E, D={D}, F) in {x.dtype.name} to go with x, got {_type(gate)}")
    E, _, F = gate.shape
    for name, array, shape in (("up", weights[1], (E, D, F)), ("down", weights[2], (E, F, D))):
        if array.shape != shape or array.dtype != x.dtype:
            raise ValueError(f"{name} must be {x.dtype.name}{list(shape)} to go with gate, got {_type(array)}")
    if group_sizes.shape != (E,) or group_sizes.dtype != jnp.int32:
        raise ValueError(f"group_sizes must be int32[{E}] to go with gate, got {_type(group_sizes)}")
    if weight is not None and (weight.shape != x.shape[:1] or weight.dtype != jnp.float32):
        raise ValueError(f"weight must be float32[{x.shape[0]}] to go with x, got {_type(weight)}")


def _type(array) -> str:
    return f"{array.dtype.name}{list(array.shape)}"
