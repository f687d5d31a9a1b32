"""Arrays of a slot, a page or states, elsewhere or as something else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mm01_jax import sharding
from mm01_jax.config import Rules

SMALL = 64  # bytes of what is told again and again: places, counts, switches


def put(array: np.ndarray, mesh: jax.sharding.Mesh, rules: Rules, *logical: str | None) -> jax.Array:
    """As `sharding.put`; of a small one the array that was put before."""
    to = _named(mesh, rules, logical)
    if array.nbytes > SMALL:
        return _placed(array, to)
    return _small(array.tobytes(), array.dtype.str, array.shape, to)


@functools.lru_cache(maxsize=256)
def _named(mesh: jax.sharding.Mesh, rules: Rules, logical: tuple[str | None, ...]) -> jax.sharding.NamedSharding:
    return sharding.named(mesh, rules, *logical)


@functools.lru_cache(maxsize=8192)
def _small(data: bytes, dtype: str, shape: tuple[int, ...], to: jax.sharding.NamedSharding) -> jax.Array:
    return _placed(np.frombuffer(data, dtype).reshape(shape), to)


def _placed(array: np.ndarray, to: jax.sharding.NamedSharding) -> jax.Array:
    if to.is_fully_addressable:  # one call, where a callback for each device takes three times as long
        return jax.device_put(array, to)
    return jax.make_array_from_callback(array.shape, to, array.__getitem__)


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


def check_alike(model, other) -> None:
    """ValueError where a model's weights are not those of the same config that lie alike; names the first."""
    old, new = jax.tree.flatten_with_path(model), jax.tree.flatten_with_path(other)
    if old[1] != new[1]:
        raise ValueError("use: got a model of another config; allowed: new weights of the engine's own")
    for (path, a), (_, b) in zip(old[0], new[0], strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype) or not a.sharding.is_equivalent_to(b.sharding, a.ndim):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            got, allowed = (f"{x.dtype}{list(x.shape)} on {x.sharding}" for x in (b, a))
            raise ValueError(f"use: weight {name}: got {got}; allowed: {allowed}")
