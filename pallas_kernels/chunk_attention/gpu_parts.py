"""Parts of the keys that a tile of queries sees: which blocks each has, and what becomes of their outputs."""

import jax.numpy as jnp
from jax import lax

KEYS = 128  # of a block
LONG = 8192  # places of a row for each part of its keys, at least


def part(splits: int, split, first, count):
    """(the first block of a part of a tile's keys, where it stops): as many blocks in each but the last."""
    total = lax.div(first + jnp.maximum(count, 1) - 1, jnp.int32(KEYS)) + 1
    if splits == 1:
        return 0, total
    share = lax.div(lax.div(first, jnp.int32(KEYS)) + splits, jnp.int32(splits))
    begin = split * share
    return begin, jnp.where(split == splits - 1, total, jnp.minimum(begin + share, total))


def together(out_PBSNH, lse_PBNS):
    """The outputs of all parts, weighed by the sums of their exponentials (of 2)."""
    weight_PBNS = jnp.exp2(lse_PBNS - lse_PBNS.max(axis=0, keepdims=True))
    weight_PBSN = jnp.swapaxes(weight_PBNS / weight_PBNS.sum(axis=0, keepdims=True), 2, 3)
    return jnp.sum(out_PBSNH * weight_PBSN[..., None], axis=0)
