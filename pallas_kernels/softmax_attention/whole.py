"""What a gradient over some of the keys has to know of the attention over all of them: (d_out, lse, out or delta).

delta = sum over keys of P * dP, which is sum over H of d_out * out: small, so that keys that come one part at a time
have it made once; a kernel that reads d_out anyway makes it of `out` on the way.
"""

import jax
import jax.numpy as jnp

Whole = tuple[jax.Array, jax.Array, jax.Array]


def delta(d_out_BSNH: jax.Array, out_BSNH: jax.Array, lse_BSN: jax.Array) -> jax.Array:
    """(B, S, N) in the logsumexp's dtype."""
    return jnp.sum(d_out_BSNH.astype(lse_BSN.dtype) * out_BSNH.astype(lse_BSN.dtype), axis=-1)


def has_delta(whole: Whole) -> bool:
    return whole[2].ndim == whole[1].ndim


def with_delta(whole: Whole) -> Whole:
    """The same with delta where it has `out`."""
    d_out, lse, out = whole
    return whole if has_delta(whole) else (d_out, lse, delta(d_out, out, lse))
