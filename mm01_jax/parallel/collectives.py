"""Collectives inside `shard_map`, and how they are made: by XLA's own, or as copies by the GPUs' copy engines.

A kernel that runs beside one of NCCL's takes 1.4 times as long, since that holds multiprocessors; copies hold none
(benchmarks/mesh.md). XLA makes them of permutes alone, and of no sums. So with `compute.collectives="copies"` each
gather, scattered sum and exchange of floats is n - 1 permutes of n shards, and sums are added up in float32 where they
arrive. Gradients are by hand: a gather's is a sum of ours, a sum's is a gather of ours.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

_BY_COPIES = contextvars.ContextVar("by copies", default=False)


@contextlib.contextmanager
def made(how: Literal["auto", "copies"]) -> Iterator[None]:
    """How collectives are made that are traced inside."""
    token = _BY_COPIES.set(how == "copies")
    try:
        yield
    finally:
        _BY_COPIES.reset(token)


def by_copies() -> bool:
    return _BY_COPIES.get()


def all_gather(x: jax.Array, axis_name: str | tuple[str, ...], *, axis: int = 0, tiled: bool = False) -> jax.Array:
    """`lax.all_gather`."""
    axes = _axes(axis_name)
    if not _can(x, axes):
        return lax.all_gather(x, axis_name, axis=axis, tiled=tiled)
    return gather(x if tiled else jnp.expand_dims(x, axis), axes, axis)


def psum_scatter(x: jax.Array, axis_name: str | tuple[str, ...], dim: int) -> jax.Array:
    """`lax.psum_scatter`, tiled."""
    axes = _axes(axis_name)
    if not _can(x, axes):
        return lax.psum_scatter(x, axis_name, scatter_dimension=dim, tiled=True)
    return scatter(x, axes, dim)


def all_to_all(x: jax.Array, axis_name: str | tuple[str, ...]) -> jax.Array:
    """`lax.all_to_all` of the first dim, tiled; a permute where each shard's part is one entry of it."""
    axes = _axes(axis_name)
    if not _can(x, axes) or _size(axes) != x.shape[0]:
        return lax.all_to_all(x, axis_name, split_axis=0, concat_axis=0, tiled=True)
    return exchange(x, axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(x, axes, dim):
    """Every shard's part along `dim`."""
    x = lax.optimization_barrier(x)  # sent and kept from one array: XLA else makes it anew where it is kept
    return _in_order([x, *(_passed(x, axes, step) for step in range(1, _size(axes)))], axes, dim)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def scatter(x, axes, dim):
    """This shard's part along `dim` of the sum over shards."""
    n, here = _size(axes), lax.axis_index(axes)
    size = x.shape[dim] // n

    def of(shard):
        return lax.dynamic_slice_in_dim(x, shard * size, size, dim)

    total = of(here).astype(jnp.float32)
    for step in range(1, n):
        total = total + _passed(of(lax.rem(here + step, n)), axes, step).astype(jnp.float32)
    return total.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def exchange(x, axes):
    """(shards to go to, ...) -> (shards that it is from, ...); this shard's own part stands where it stood."""
    n, here = _size(axes), lax.axis_index(axes)
    out = x
    for step in range(1, n):
        to, source = lax.rem(here + step, n), lax.rem(here - step + n, n)
        got = _passed(lax.dynamic_slice_in_dim(x, to, 1, 0), axes, step)
        out = lax.dynamic_update_slice_in_dim(out, got, source, 0)
    return out


gather.defvjp(lambda x, axes, dim: (gather(x, axes, dim), None), lambda axes, dim, _, d: (scatter(d, axes, dim),))
scatter.defvjp(lambda x, axes, dim: (scatter(x, axes, dim), None), lambda axes, dim, _, d: (gather(d, axes, dim),))
exchange.defvjp(lambda x, axes: (exchange(x, axes), None), lambda axes, _, d: (exchange(d, axes),))


def _in_order(parts, axes, dim):
    """One array of the parts of this shard, the one before it, and so on, by shards; in one pass over them."""
    n, size = len(parts), parts[0].shape[dim]
    twice = lax.concatenate([*parts[::-1], *parts[:0:-1]], dim)  # shards here + 1, ..., here, here + 1, ...
    return lax.dynamic_slice_in_dim(twice, (n - 1 - lax.axis_index(axes)) * size, n * size, dim)


def _passed(x, axes, step):
    """x of the shard `step` before this one."""
    n = _size(axes)
    return lax.ppermute(x, axes, [(i, (i + step) % n) for i in range(n)])


def _can(x, axes) -> bool:
    return _BY_COPIES.get() and jnp.issubdtype(x.dtype, jnp.floating) and _size(axes) > 1


def _axes(axes) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes)


def _size(axes) -> int:
    return math.prod(lax.axis_size(axis) for axis in axes)
