"""Which weights are no numbers: every leaf and chunk with NaN or infinity, by name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mm01_jax.checkpoint.disk_grid import leaf_paths, leaf_stacks
from mm01_jax.checkpoint.errors import CheckpointError

_NAMED = 8
_FEW_ELEMENTS = 1 << 20  # NumPy has read so many before XLA has a program for their shape


def check_finite(where: object, tree, mesh: Mesh, advice: str = "", *, what: str = "weights") -> None:
    """Raises CheckpointError that names every leaf of `tree`, and its chunk, with a value that is not finite.

    Args:
      where: the directory that the tree came from. mesh: that it lies on. advice: what else to do, for the message.
      what: the tree is, for the message.
    """
    leaves = {
        path: (leaf, stack)
        for path, leaf, stack in zip(leaf_paths(tree), jax.tree.leaves(tree), leaf_stacks(tree), strict=True)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    few = {path: leaf for path, leaf in leaves.items() if _is_few(leaf[0])}
    finite = {path: np.isfinite(np.asarray(x)).all(axis=_axes(x, stack)) for path, (x, stack) in few.items()}
    if many := {path: leaf for path, leaf in leaves.items() if path not in few}:
        arrays, stacks = zip(*many.values(), strict=True)
        with jax.set_mesh(mesh):
            finite |= zip(many, jax.device_get(_finite(arrays, stacks=stacks)), strict=True)
    bad = [
        f"{path} {list(map(int, index))}" if len(index) else path
        for path in leaves
        for index in np.argwhere(~finite[path])
    ]
    if bad:
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise CheckpointError(f"{where}: {what} that are not finite: {', '.join(bad[:_NAMED])}{more}{advice}")


@functools.partial(jax.jit, static_argnames="stacks")
def _finite(leaves, *, stacks: tuple[int, ...]):
    """Of each leaf and stack index: whether all values are finite; equal on every device."""
    found = [jnp.isfinite(x).all(axis=_axes(x, stack)) for x, stack in zip(leaves, stacks, strict=True)]
    return [jax.lax.with_sharding_constraint(x, jax.P()) for x in found]


def _is_few(x: jax.Array) -> bool:
    return x.size <= _FEW_ELEMENTS and x.is_fully_addressable


def _axes(x, stack: int) -> tuple[int, ...]:
    return tuple(range(stack, x.ndim))
