"""Inside `jax.shard_map`: make the arguments of an operation vary over the same mesh axes."""

import jax


def vary_alike(*arrays: jax.Array | None) -> list[jax.Array | None]:
    """The arrays, cast to vary over the union of their mesh axes; outside `shard_map`, the arrays. None stays None.

    A gradient has to vary over the axes of what it belongs to, and an operation's own gradient rule returns one that
    varies over all of them. Here, before that rule, the transpose of the cast sums it over the axes not varied over.
    """
    axes = frozenset().union(*(jax.typeof(x).mat.varying for x in arrays if x is not None))

    def cast(x):
        missing = () if x is None else tuple(sorted(axes - jax.typeof(x).mat.varying))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return [cast(x) for x in arrays]
