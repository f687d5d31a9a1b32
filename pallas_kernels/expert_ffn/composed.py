"""SwiGLU out of three grouped products of one implementation, for compilers that fuse what stands between them."""

import jax
import jax.numpy as jnp


def forward(multiply, x_RD, weights, group_sizes_E, weight_R):
    """multiply(x_RD, weights_EDF, group_sizes_E) -> out_RF, differentiable."""
    gate, up, down = weights
    hidden = jax.nn.silu(multiply(x_RD, gate, group_sizes_E)) * multiply(x_RD, up, group_sizes_E)
    if weight_R is not None:
        hidden = (hidden.astype(jnp.float32) * weight_R[:, None]).astype(hidden.dtype)
    return multiply(hidden, down, group_sizes_E)
