"""The same as array arithmetic over all places, masked. Runs everywhere."""

import jax
import jax.numpy as jnp

from pallas_kernels.few_rows import filled_up
from pallas_kernels.precision import matmul_precision


def unsupported(projected_RF, angle_BA, keys_LBKTH, values_LBKTH, told) -> str | None:
    """Never: it runs everywhere."""
    del projected_RF, angle_BA, keys_LBKTH, values_LBKTH, told


def forward(projected_RF, angle_BA, keys_LBKTH, values_LBKTH, told):
    """Contract in the package's docstring."""
    position_B, active_B, layer = told
    _, B, K, T, H = keys_LBKTH.shape
    heads = projected_RF[:B].reshape(B, -1, H)
    turned = rotated(heads[:, :-K], angle_BA)
    at = layer[0], jnp.arange(B, dtype=jnp.int32), slice(None), jnp.where(active_B, position_B, T)
    keys_LBKTH = keys_LBKTH.at[at].set(turned[:, -K:], mode="drop")
    values_LBKTH = values_LBKTH.at[at].set(heads[:, -K:], mode="drop")
    out = _attend(turned[:, :-K].reshape(B, K, -1, H), keys_LBKTH[at[0]], values_LBKTH[at[0]], position_B)
    out = jnp.pad(out.reshape(B, -1), ((0, filled_up(B) - B), (0, 0)))
    return out, keys_LBKTH, values_LBKTH


def rotated(heads_BMH, angle_BA):
    """In float32, rounded once."""
    half, wide = angle_BA.shape[1], heads_BMH.astype(jnp.float32)
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    cos, sin = jnp.cos(angle_BA)[:, None], jnp.sin(angle_BA)[:, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], -1).astype(heads_BMH.dtype)


def _attend(query_BKGH, keys_BKTH, values_BKTH, position_B):
    told = {"precision": matmul_precision(query_BKGH.dtype), "preferred_element_type": jnp.float32}
    scores = jnp.einsum("bkgh,bkth->bkgt", query_BKGH, keys_BKTH, **told) * query_BKGH.shape[-1] ** -0.5
    seen_BT = jnp.arange(keys_BKTH.shape[2], dtype=jnp.int32)[None, :] <= position_B[:, None]
    share = jax.nn.softmax(jnp.where(seen_BT[:, None, None, :], scores, -jnp.inf), axis=-1)
    out = jnp.einsum("bkgt,bkth->bkgh", share.astype(values_BKTH.dtype), values_BKTH, **told)
    return out.astype(query_BKGH.dtype)
