"""SwiGLU of each row by its expert, the public operation: rows sorted by expert, three matrices an expert.

    y = W_down( w * silu(W_gate x) * (W_up x) )

Letters: R rows after dispatch, D width of a row, E experts, F their width; w is a row's own factor (its router weight).
"""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.int8 import Int8, check_matrices, in_layer
from pallas_kernels.varying import vary_alike

OPERATION = dispatch.Operation(
    "expert_ffn",
    {name: f"pallas_kernels.expert_ffn.{name}" for name in ("tpu", "gpu", "xla")},
)
Weights = tuple[jax.Array | Int8, jax.Array | Int8, jax.Array | Int8]


def expert_ffn(
    x_RD: jax.Array,
    weights: Weights,
    group_sizes_E: jax.Array,
    weight_R: jax.Array | None = None,
    *,
    layer: jax.Array | None = None,
    capacity: int,
    multiple: int = 1,
    implementation: str | None = None,
) -> jax.Array:
    """y (R, D) in x's dtype; differentiable in x, the weights and `weight_R`.

    Args:
      x_RD: (R, D), bfloat16 or float32, rows sorted by group. Rows after the last group give 0 and get gradient 0.
      weights: gate (E, D, F), up (E, D, F), down (E, F, D), in x's dtype or as Int8; these have no gradient.
      group_sizes_E: (E,) int32, >= 0, their sum <= R.
      weight_R: (R,) float32, each row's factor; None is 1.
      layer: int32 scalar: weights are those of a stack of layers, (L, E, ...), of which this one's are meant; not
        differentiable. Hopper's kernel reads them where they lie.
      capacity, multiple: as in `grouped_matmul`.
      implementation: "tpu", "gpu" (NVIDIA Hopper), "xla", or None for the first of these that can.

    Raises:
      ValueError: a shape or dtype is not as above.
      Unsupported: the named implementation cannot take these arguments on this device.
    """
    one = weights
    if layer is not None:
        one = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape[1:], w.dtype), weights)
    _check(x_RD, one, group_sizes_E, weight_R)
    name = dispatch.choose(OPERATION, implementation, x_RD, one, group_sizes_E, weight_R, capacity, multiple)
    module = OPERATION.module(name)
    if layer is not None and not hasattr(module, "forward_in_stack"):
        weights, layer = in_layer(weights, layer), None
    leaves, tree = jax.tree.flatten((x_RD, weights, group_sizes_E, weight_R))
    arguments = jax.tree.unflatten(tree, vary_alike(*leaves))
    if layer is not None:
        return module.forward_in_stack(*arguments, layer)
    return module.forward(*arguments, capacity, multiple)


def _check(x, weights: Weights, group_sizes, weight) -> None:
    if x.ndim != 2 or x.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"x must be (R, D) in bfloat16 or float32, got {x.dtype.name}{list(x.shape)}")
    E, D, F = check_matrices("gate", weights[0], x)
    check_matrices("up", weights[1], x, (E, D, F))
    check_matrices("down", weights[2], x, (E, F, D))
    if group_sizes.shape != (E,) or group_sizes.dtype != jnp.int32:
        raise ValueError(f"group_sizes must be int32[{E}] to go with gate, got {_type(group_sizes)}")
    if weight is not None and (weight.shape != x.shape[:1] or weight.dtype != jnp.float32):
        raise ValueError(f"weight must be float32[{x.shape[0]}] to go with x, got {_type(weight)}")


def _type(array) -> str:
    return f"{array.dtype.name}{list(array.shape)}"
