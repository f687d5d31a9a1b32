"""Decode steps of a lightning layer that read its state and do not write it, the public operation.

A *ring* has the keys and values of the tokens since the state was written, `RING` at most; a step adds its own. The
fold then reads and writes the state once for all of them.

    step   (o (R, W), u (R, W), rings) as `lightning_step`, of a state that is still that of `place` tokens before
    fold   the states of all layers after the first `count` tokens of each row's ring

Letters as in `api.py`. No gradient: it is for decoding.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch

OPERATION = dispatch.Operation(
    "lightning_ring", {name: f"pallas_kernels.lightning_step.{name}_ring" for name in ("tpu", "gpu", "xla")}
)
RING = 16
Rings = tuple[jax.Array, jax.Array]


def empty_rings(state_LBNHH: jax.Array, dtype: jnp.dtype) -> Rings:
    """Keys and values (L, B, N, RING, H) of no token."""
    shape = (*state_LBNHH.shape[:3], RING, state_LBNHH.shape[4])
    return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)


@jax.named_scope("lightning_step")
def lightning_ring_step(
    projected_RF: jax.Array,
    state_LBNHH: jax.Array,
    rings: Rings,
    slope_LN: jax.Array,
    weight_LNH: jax.Array,
    told: tuple[jax.Array, jax.Array, jax.Array],
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array, Rings]:
    """(o, u, rings). Donate the rings to write them in place.

    Args:
      told: active_B bool, rows that are not write nothing and give 0, and are not active before the fold again; place
        int32 (1,), steps since the ring was empty, below RING; layer int32 (1,). The others as in `lightning_step`.
      implementation: "tpu", "gpu" (NVIDIA Hopper), "xla", or None for the first of these that can.

    Raises:
      Unsupported: the named implementation cannot take these arguments on this device.
    """
    name = dispatch.choose(OPERATION, implementation, projected_RF.dtype, state_LBNHH)
    return OPERATION.module(name).step(projected_RF, state_LBNHH, rings, slope_LN, weight_LNH, told)


@jax.named_scope("lightning_fold")
def lightning_fold(
    state_LBNHH: jax.Array, rings: Rings, slope_LN: jax.Array, count_B: jax.Array, *, implementation: str | None = None
) -> jax.Array:
    """The states, float32. Donate them to write them in place. count_B: int32, tokens that each row has in its ring."""
    name = dispatch.choose(OPERATION, implementation, rings[0].dtype, state_LBNHH)
    return OPERATION.module(name).fold(state_LBNHH, rings, slope_LN, count_B)
