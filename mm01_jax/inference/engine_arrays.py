"""Arrays of a slot, a page or states, elsewhere or as something else."""

import jax
import jax.numpy as jnp
import numpy as np


def to_host(tree):
    """Arrays of the same sharding in the memory of the hosts."""
    return jax.device_put(tree, jax.tree.map(lambda x: x.sharding.with_memory_kind("pinned_host"), tree))


def to_devices(tree):
    """What `to_host` gave, where it was."""
    return jax.device_put(tree, jax.tree.map(lambda x: x.sharding.with_memory_kind("device"), tree))


def like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def num_bytes(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def nan(x: jax.Array) -> jax.Array:
    """As x, every number NaN; whole numbers as they are."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return jax.make_array_from_callback(x.shape, x.sharding, lambda at: np.full(x.shape, np.nan, x.dtype)[at])
