"""The few greatest of many numbers, where `lax.top_k` would sort them all: only groups with the greatest heads are.

A group is so many numbers that stand beside each other; its head is the greatest of them. A number among the `top`
greatest lies in one of the `top` groups with the greatest heads: of `top` others each would have one that comes before
it. So it is with equal numbers, too, of which the first comes first.
"""

import jax
import jax.numpy as jnp
from jax import lax

WIDTH = 128  # of a group
LEAST = 4  # times as many numbers as are sorted then: of fewer all are


def likeliest(x_BV: jax.Array, top: int) -> tuple[jax.Array, jax.Array]:
    """(numbers (B, top), the greatest first, their places int32), as `lax.top_k`. x: float32, no NaN."""
    B, V = x_BV.shape
    if LEAST * WIDTH * top > V:
        return lax.top_k(x_BV, top)
    groups = -(-V // WIDTH)
    x_BGW = jnp.pad(x_BV, ((0, 0), (0, groups * WIDTH - V)), constant_values=-jnp.inf).reshape(B, groups, WIDTH)
    group_BT = jnp.sort(lax.top_k(jnp.max(x_BGW, axis=2), top)[1], axis=1)  # in order, for who is first of equals
    some_BN = jnp.take_along_axis(x_BGW, group_BT[:, :, None], axis=1).reshape(B, top * WIDTH)
    best_BT, place_BT = lax.top_k(some_BN, top)
    return best_BT, jnp.take_along_axis(group_BT, place_BT // WIDTH, axis=1) * WIDTH + place_BT % WIDTH
