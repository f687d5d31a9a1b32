"""The least logit that a row keeps: of the k most likely, the fewest whose probabilities sum to top_p.

Nothing is sorted. The k-th largest logit is the least t above which fewer than k lie, and the last of the fewest that
sum to p is the least t above which less than p of the probability lies. Both are found bit by bit, floats being in the
order of their bits (those of negative ones turned about): 32 sums over a row each, of which none is ever above the one
of a lower t, whatever their rounding, since each adds the same numbers or zeros in the same places.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def least_kept(logits_BV: jax.Array, top_k_B: jax.Array, top_p_B: jax.Array) -> jax.Array:
    """(B,) float32, one of the row's logits.

    Args:
      logits_BV: float32, the largest of each row 0. top_k_B: int32, 0: all. top_p_B: float32, 1: all.
    """
    V = logits_BV.shape[1]
    bits_BV, k_B = _ordered(logits_BV), jnp.where(top_k_B > 0, jnp.minimum(top_k_B, V), V)
    kth_B = _least(lambda above_BV: jnp.sum(above_BV, axis=-1, dtype=jnp.int32) < k_B, bits_BV)
    part_BV = jnp.where(bits_BV >= kth_B[:, None], jnp.exp(logits_BV), 0)
    most_B = top_p_B * jnp.sum(part_BV, axis=-1)
    last_B = _least(lambda above_BV: jnp.sum(jnp.where(above_BV, part_BV, 0), axis=-1) < most_B, bits_BV)
    # Where everything is kept no rounding of a sum may cut the last.
    return _unordered(jnp.where(top_p_B < 1.0, jnp.maximum(last_B, kth_B), kth_B))


def _least(holds: Callable[[jax.Array], jax.Array], bits_BV: jax.Array) -> jax.Array:
    """The least t (B,) uint32 for which `holds`, of whom lies above t, bool (B, V); it holds for all t above it."""

    def one(number, low_B):
        bit = jnp.uint32(1) << (31 - number).astype(jnp.uint32)
        below_B = low_B | (bit - 1)  # the largest t without this bit
        return jnp.where(holds(bits_BV > below_B[:, None]), low_B, low_B | bit)

    return lax.fori_loop(0, 32, one, jnp.zeros(bits_BV.shape[0], jnp.uint32))


_SIGN = np.uint32(1 << 31)


def _ordered(x: jax.Array) -> jax.Array:
    """uint32 in the order of float32."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >= _SIGN, ~bits, bits | _SIGN)


def _unordered(bits: jax.Array) -> jax.Array:
    """float32 of what `_ordered` made."""
    bits = jnp.where(bits >= _SIGN, bits ^ _SIGN, ~bits)
    return lax.bitcast_convert_type(bits, jnp.float32)
