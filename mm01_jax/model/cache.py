"""What decoding remembers: one pytree, allocated once, each mixer's part in a shape of its own.

The cache travels through the layer scan as part of its carry and is updated in place at (period, layer): nothing of
its size is ever copied when the caller donates it. A row's next token goes to slot `lengths[row]`; slot = position.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StackCache:
    """The part of the cache that one stack of layers has, and which of its layers is in hand.

    arrays: the mixer's pytree (`empty_cache`), every leaf (M, n, B, ...). period, layer: int32 scalars.
    """

    arrays: Any
    period: jax.Array
    layer: jax.Array

    def take(self) -> Any:
        """What the layer in hand has: leaves (B, ...)."""
        return jax.tree.map(lambda array: array[self.period, self.layer], self.arrays)

    def put(self, arrays: Any) -> "StackCache":
        """This cache with other arrays (B, ...) for the layer in hand."""
        at = (self.period, self.layer)
        return self.replace(jax.tree.map(lambda array, new: array.at[at].set(new), self.arrays, arrays))

    def replace(self, arrays: Any) -> "StackCache":
        """The same layer in hand of other arrays (M, n, B, ...)."""
        return dataclasses.replace(self, arrays=arrays)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OneRow:
    """One row of a stack's part of the cache where it lies: what is written goes there, and nothing is copied.

    arrays: leaves (M, n * rows, 1, ...), layers and rows of the whole as one axis. row: int32 scalar.
    """

    arrays: Any
    row: jax.Array
    rows: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, arrays: Any, row: jax.Array) -> "OneRow":
        """arrays: leaves (M, n, rows, ...)."""
        flat = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, 1, *x.shape[3:]), arrays)
        return cls(flat, row, jax.tree.leaves(arrays)[0].shape[2])

    def whole(self) -> Any:
        """The arrays (M, n, rows, ...)."""
        return jax.tree.map(lambda x: x.reshape(x.shape[0], -1, self.rows, *x.shape[3:]), self.arrays)


def in_hand(stack: Any, period: jax.Array, layer: jax.Array) -> StackCache:
    """A layer of a stack's part of the cache: its mixer's pytree, or one row of it."""
    if isinstance(stack, OneRow):
        return StackCache(stack.arrays, period, layer * stack.rows + stack.row)
    return StackCache(stack, period, layer)


def laid_down(stack: Any, cache: StackCache) -> Any:
    """The stack as it was before `in_hand`, with what the layer has written."""
    return dataclasses.replace(stack, arrays=cache.arrays) if isinstance(stack, OneRow) else cache.arrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeCache:
    """The whole cache (made by `mixers.empty_cache`).

    stacks: one entry per stack of the period, its mixer's pytree or `OneRow` of it. lengths: (B,) int32, tokens seen
    by each row.
    """

    stacks: tuple
    lengths: jax.Array


class RowLayout(NamedTuple):
    """How some rows of a tree lie beside the whole of it.

    axes: of each leaf, the axis of its rows. whole, part: PartitionSpecs of the tree and of the rows taken out of it;
    the mesh axes that cut the rows of `part` come first among those of `whole`, so that part's every shard has a
    stretch of whole's rows. reduced: the mesh axes that cut that stretch. part_axes: those that cut part's rows.
    """

    axes: Any
    whole: Any
    part: Any
    reduced: tuple[str, ...]
    part_axes: tuple[str, ...]


class Window(NamedTuple):
    """Some positions of a row: `size` of them from `start` on; axis: of every leaf, that of its positions."""

    start: jax.Array
    size: int
    axis: int


def take_rows(tree: Any, index_R: jax.Array, layout: RowLayout, window: Window | None = None) -> Any:
    """One row for each shard of `layout.part`: the `index`-th of its stretch; leaves (..., R, ...).

    Where several shards hold a stretch, its row is summed over them as bits, which is exact for every value.
    """

    def local(tree, index_R, *start):
        def one(array, axis):
            owns, at = _own(array.shape[axis], index_R[0], layout.reduced)
            begin, shape = _place(array, (axis, at), window, *start)
            row = lax.dynamic_slice(array, begin, shape)
            return row if not layout.reduced else _sum_bits(row, owns, layout.reduced)

        return jax.tree.map(one, tree, layout.axes)

    specs, start = _window(layout, window)
    mapped = jax.shard_map(local, in_specs=(layout.whole, *specs), out_specs=layout.part)
    return mapped(tree, index_R, *start)


def put_rows(tree: Any, rows: Any, index_R: jax.Array, layout: RowLayout, window: Window | None = None) -> Any:
    """The tree with rows, as `take_rows` gives them, in their places. Donate it to update it in place."""

    def local(tree, rows, index_R, *start):
        def one(array, row, axis):
            owns, at = _own(array.shape[axis], index_R[0], layout.reduced)
            begin, shape = _place(array, (axis, at), window, *start)
            if layout.reduced:
                row = jnp.where(owns, row, lax.dynamic_slice(array, begin, shape))
            return lax.dynamic_update_slice(array, row, begin)

        return jax.tree.map(one, tree, rows, layout.axes)

    specs, start = _window(layout, window)
    mapped = jax.shard_map(local, in_specs=(layout.whole, layout.part, *specs), out_specs=layout.whole)
    return mapped(tree, rows, index_R, *start)


def _window(layout: RowLayout, window: Window | None) -> tuple[tuple, tuple]:
    """(specs of the index and the window's start, the start)."""
    index = jax.P(layout.part_axes or None)
    return ((index,), ()) if window is None else ((index, jax.P()), (window.start,))


def _place(array: jax.Array, row: tuple[int, jax.Array], window: Window | None, start=None) -> tuple[list, list]:
    """(begin, shape) of a row (its axis, its place) in an array, whole or a window of it."""
    begin, shape = [jnp.int32(0)] * array.ndim, list(array.shape)
    begin[row[0]], shape[row[0]] = row[1], 1
    if window is not None:
        begin[window.axis], shape[window.axis] = start, window.size
    return begin, shape


def _own(rows_here: int, index: jax.Array, reduced: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """(whether this shard has the row, its place here or any place)."""
    if not reduced:
        return jnp.bool_(True), index
    return lax.axis_index(reduced) == index // rows_here, index % rows_here


def _sum_bits(row: jax.Array, owns: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The owner's row on every shard; a sum of floats would lose the sign of zero."""
    if row.dtype == jnp.bool_:
        return _sum_bits(row.astype(jnp.int32), owns, axes).astype(jnp.bool_)
    bits = lax.bitcast_convert_type(row, jnp.dtype(f"uint{8 * row.dtype.itemsize}"))
    return lax.bitcast_convert_type(lax.psum(jnp.where(owns, bits, jnp.zeros_like(bits)), axes), row.dtype)
