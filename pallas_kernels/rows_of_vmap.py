"""`jax.vmap` of an operation with a batch axis: the mapped axis becomes more rows of the batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def rows_of_vmap(f: Callable, shared: int) -> Callable:
    """`f` with a rule for `jax.vmap` that a kernel need not know of: one call with V x B rows instead of V calls.

    All arguments and results of `f` are arrays with the batch in front, or None, but argument number `shared`. Where
    that one is mapped over as well, each of its values gets a call.
    """
    folded = jax.custom_batching.custom_vmap(f)

    @folded.def_vmap
    def rule(size, mapped, *arguments):
        if mapped[shared]:
            axes = [0 if any(jax.tree.leaves(m)) else None for m in mapped]
            outputs = [
                folded(*(_row(x, axis, i) for x, axis in zip(arguments, axes, strict=True))) for i in range(size)
            ]
            stacked = tuple(jnp.stack(column) for column in zip(*outputs, strict=True))
            return stacked, tuple(True for _ in stacked)

        def fold(i, x):
            if x is None or i == shared:
                return x
            x = x if mapped[i] else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        outputs = folded(*(fold(i, x) for i, x in enumerate(arguments)))
        return tuple(x.reshape(size, -1, *x.shape[1:]) for x in outputs), tuple(True for _ in outputs)

    return folded


def _row(x, axis, i: int):
    return x if x is None or axis is None else x[i]
