"""SwiGLU out of three grouped products of one implementation, for compilers that fuse what stands between them."""

import jax
import jax.numpy as jnp

from pallas_kernels.kept import EXPANDED, keep


def forward(multiply, x_RD, weights, group_sizes_E, weight_R):
    """multiply(x_RD, weights_EDF, group_sizes_E) -> out_RF, differentiable."""
    gate, up, down = weights
    gate_RF, up_RF = (keep(multiply(x_RD, matrices, group_sizes_E), EXPANDED) for matrices in (gate, up))
    hidden = jax.nn.silu(gate_RF) * up_RF
    if weight_R is not None:
        hidden = (hidden.astype(jnp.float32) * weight_R[:, None]).astype(hidden.dtype)
    return multiply(hidden, down, group_sizes_E)
