"""The same as array arithmetic: the state that the ring's tokens make, step by step. Runs everywhere."""

import jax
import jax.numpy as jnp

from pallas_kernels.lightning_step import xla


def unsupported(dtype, state_LBNHH) -> str | None:
    """Never: it runs everywhere."""
    del dtype, state_LBNHH


def step(projected_RF, state_LBNHH, rings, slope_LN, weight_LNH, told):
    """Contract in the package's docstring."""
    active_B, place, layer = told
    at, B = layer[0], active_B.shape[0]
    count_B = jnp.broadcast_to(place, (B,))
    state_LBNHH = fold(state_LBNHH[at][None], tuple(ring[at][None] for ring in rings), slope_LN[at][None], count_B)
    told = slope_LN[at][None], weight_LNH[at][None], active_B, jnp.zeros((1,), jnp.int32)
    o, u, _ = xla.forward(projected_RF, state_LBNHH, *told)
    _, keys, values = xla.heads(projected_RF, state_LBNHH)
    rows = jnp.where(active_B, jnp.arange(B, dtype=jnp.int32), B)
    new = (ring.at[at, rows, :, place[0]].set(x, mode="drop") for ring, x in zip(rings, (keys, values), strict=True))
    return o, u, tuple(new)


def fold(state_LBNHH, rings, slope_LN, count_B):
    """Contract in the package's docstring."""
    decay = jnp.exp(-slope_LN)[:, None, :, None, None]

    def one(token, states):
        key, value = (ring[:, :, :, token].astype(jnp.float32) for ring in rings)
        new = states * decay + key[..., :, None] * value[..., None, :]
        return jnp.where((token < count_B)[None, :, None, None, None], new, states)

    return jax.lax.fori_loop(0, rings[0].shape[3], one, state_LBNHH)
