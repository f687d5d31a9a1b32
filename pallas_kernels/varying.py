"""Inside `jax.shard_map`: cast arrays to vary over mesh axes that they are equal along. Outside, nothing is done.

The transpose of the cast sums the gradient over those axes, so where it is made is where that sum is taken.
"""

from collections.abc import Iterable

import jax


def vary_over(x: jax.Array, axes: Iterable[str]) -> jax.Array:
    """x, which varies over `axes` as well as over those it varies over already."""
    missing = tuple(sorted(set(axes) - jax.typeof(x).mat.varying))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def vary_alike(*arrays: jax.Array | None) -> list[jax.Array | None]:
    """The arrays, each varying over the mesh axes of all of them. None stays None.

    A gradient has to vary over the axes of what it belongs to, and an operation's own gradient rule returns one that
    varies over all of them. Here, before that rule, the transpose of the cast sums it over the axes not varied over.
    """
    axes = frozenset().union(*(jax.typeof(x).mat.varying for x in arrays if x is not None))
    return [None if x is None else vary_over(x, axes) for x in arrays]
