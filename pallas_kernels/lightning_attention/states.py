"""A state that nobody gave is zero."""

import jax
import jax.numpy as jnp

from pallas_kernels.varying import vary_alike


def or_zeros(state_BNHH: jax.Array | None, q_BSNH: jax.Array) -> jax.Array:
    """The state; for None zeros (B, N, H, H) float32, which in `shard_map` vary over the axes that q varies over."""
    if state_BNHH is not None:
        return state_BNHH
    B, _, N, H = q_BSNH.shape
    return vary_alike(q_BSNH, jnp.zeros((B, N, H, H), jnp.float32))[1]
