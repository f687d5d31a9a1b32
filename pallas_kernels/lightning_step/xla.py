"""The same as array arithmetic, out of the stack and back into it. Runs everywhere."""

import jax
import jax.numpy as jnp

from pallas_kernels.lightning_attention import xla


def unsupported(projected_RF, state_LBNHH, slope_LN, weight_LNH, active_B, layer) -> str | None:
    """Never: it runs everywhere."""
    del projected_RF, state_LBNHH, slope_LN, weight_LNH, active_B, layer


def forward(projected_RF, state_LBNHH, slope_LN, weight_LNH, active_B, layer):
    """Contract in the package's docstring."""
    _, B, N, H, _ = state_LBNHH.shape
    at, heads_of = layer[0], heads(projected_RF, state_LBNHH)
    gate = projected_RF[:B, 3 * N * H :].reshape(B, N, H)
    o, state = xla.step(*heads_of, slope_LN[at], state_LBNHH[at], active_B)
    wide = jnp.float32
    u = (jax.nn.sigmoid(gate.astype(wide)) * weight_LNH[at].astype(wide)[None] * o.astype(wide)).astype(o.dtype)
    rows = ((0, projected_RF.shape[0] - B), (0, 0))
    o, u = (jnp.pad(x.reshape(B, N * H), rows) for x in (o, u))
    return o, u, state_LBNHH.at[at].set(state)


def heads(projected_RF, state_LBNHH):
    """q, k, v (B, N, H) of the rows that are there, after their SiLU."""
    _, B, N, H, _ = state_LBNHH.shape
    qkv = jax.nn.silu(projected_RF[:B, : 3 * N * H]).reshape(B, N, 3, H)
    return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
