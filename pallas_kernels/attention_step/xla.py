"""The same over all places, masked. Runs everywhere."""

import jax
import jax.numpy as jnp

from pallas_kernels.few_rows import filled_up
from pallas_kernels.precision import matmul_precision


def unsupported(query_BKGH, keys_LBKTH, values_LBKTH, count_B, layer) -> str | None:
    """Never: it runs everywhere."""
    del query_BKGH, keys_LBKTH, values_LBKTH, count_B, layer


def forward(query_BKGH, keys_LBKTH, values_LBKTH, count_B, layer):
    """Contract in the package's docstring."""
    keys, values = (jax.lax.dynamic_index_in_dim(x, layer[0], 0, keepdims=False) for x in (keys_LBKTH, values_LBKTH))
    told = {"precision": matmul_precision(query_BKGH.dtype), "preferred_element_type": jnp.float32}
    scores = jnp.einsum("bkgh,bkth->bkgt", query_BKGH, keys, **told) * query_BKGH.shape[-1] ** -0.5
    seen_BT = jnp.arange(keys.shape[2], dtype=jnp.int32)[None, :] < count_B[:, None]
    share = jax.nn.softmax(jnp.where(seen_BT[:, None, None, :], scores, -jnp.inf), axis=-1)
    out = jnp.einsum("bkgt,bkth->bkgh", share.astype(values.dtype), values, **told)
    out = out.astype(query_BKGH.dtype).reshape(out.shape[0], -1)
    return jnp.pad(out, ((0, filled_up(len(out)) - len(out)), (0, 0)))
