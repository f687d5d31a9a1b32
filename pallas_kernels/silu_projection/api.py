"""A product and its SiLU, the public operation (docs/model.md A.4, 1.).

    y = silu(x W)      silu(z) = z / (1 + exp(-z)) = z/2 (1 + tanh(z/2))

Letters: R rows, D their width, F the result's. It has no gradient: who wants one has to keep x W.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.varying import vary_alike

OPERATION = dispatch.Operation(
    "silu_projection", {name: f"pallas_kernels.silu_projection.{name}" for name in ("gpu", "xla")}
)


def silu_projection(x_RD: jax.Array, weight_DF: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """y (R, F) in x's dtype, accumulated in float32.

    Args:
      x_RD: (R, D), bfloat16 or float32. weight_DF: (D, F) in its dtype.
      implementation: "gpu" (NVIDIA Hopper), "xla", or None for the first of these that can.

    Raises:
      ValueError: a shape or dtype is not as above.
      Unsupported: the named implementation cannot take these arguments on this device.
    """
    if x_RD.ndim != 2 or 0 in x_RD.shape or x_RD.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"x must be (R, D) in bfloat16 or float32, got {x_RD.dtype.name}{list(x_RD.shape)}")
    if weight_DF.ndim != 2 or weight_DF.shape[0] != x_RD.shape[1] or weight_DF.dtype != x_RD.dtype:
        got = f"{weight_DF.dtype.name}{list(weight_DF.shape)}"
        raise ValueError(f"weight must be {x_RD.dtype.name}[{x_RD.shape[1]}, F] to go with x, got {got}")
    arrays = vary_alike(x_RD, weight_DF)
    return OPERATION.module(dispatch.choose(OPERATION, implementation, *arrays)).forward(*arrays)
