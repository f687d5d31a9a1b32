"""How rows travel between expert shards: buffers of fixed size whole, or only the rows that they hold.

A transport takes (shards, buffer, D), the part for each shard, and gives the same shape, the part from each; rows after
the first `sent` of a part are 0 on both sides.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from mm01_jax.parallel import collectives

# (x (S, R, D), rows sent to each shard (S,), rows received from each (S,), mesh axes) -> (S, R, D)
Transport = Callable[[jax.Array, jax.Array, jax.Array, tuple[str, ...]], jax.Array]


def padded(x_SRD: jax.Array, sent_S: jax.Array, received_S: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """One all-to-all of whole buffers: runs everywhere."""
    del sent_S, received_S
    return collectives.all_to_all(x_SRD, axes)


def ragged(x_SRD: jax.Array, sent_S: jax.Array, received_S: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Only the rows there are, each to the same place as in `padded`. XLA has it for TPUs and GPUs."""
    S, R, D = x_SRD.shape
    starts_S = jnp.arange(S, dtype=jnp.int32) * R
    places_S = jnp.full((S,), R, jnp.int32) * lax.axis_index(axes)  # this shard's part of every receiver's buffer
    rows = x_SRD.reshape(S * R, D)
    out = lax.ragged_all_to_all(
        rows, jnp.zeros_like(rows), starts_S, sent_S, places_S, received_S, axis_name=axes if len(axes) > 1 else axes[0]
    )
    return out.reshape(S, R, D)


TRANSPORTS = {"auto": padded, "padded": padded, "ragged": ragged}  # "auto" is settled before training, else padded
