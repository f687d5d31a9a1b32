"""Which keys a query sees: those of its document (`pallas_kernels/documents.py`) at positions up to its own.

Also queries cut into blocks, and the blocks that a block can see.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Tags = tuple[jax.Array, jax.Array]  # (positions, document ids), int32 (B, S) each


def visible(query_tags: Tags, key_tags: Tags) -> jax.Array:
    """(B, S, T) bool: keys of the query's own document at positions up to its own; nothing for padding (< 0)."""
    positions, documents = query_tags
    key_positions, key_documents = key_tags
    same = (documents[:, :, None] == key_documents[:, None, :]) & (documents >= 0)[:, :, None]
    return same & (key_positions[:, None, :] <= positions[:, :, None])


def tied(query: jax.Array, tags):
    """The tags (any arrays), made to depend on the queries. Masks would else depend on nothing that differs between
    layers, and jax computes what a scan over layers has in common before it: every mask of every block and pass,
    1.7 TiB at a million tokens on 512 chips.
    """
    return jax.lax.optimization_barrier((query, tags))[1]


def split_queries(arrays: tuple[jax.Array, ...], block: int) -> tuple[jax.Array, ...]:
    """(B, S, ...) -> (blocks, B, block, ...) each; the last block is filled with -1, padding to a document."""
    B, S = arrays[0].shape[:2]
    size = min(block, S)
    blocks = -(-S // size)

    def split(x: jax.Array) -> jax.Array:
        padding = [(0, 0), (0, blocks * size - S)] + [(0, 0)] * (x.ndim - 2)
        padded = jnp.pad(x, padding, constant_values=-1)
        return jnp.moveaxis(padded.reshape(B, blocks, size, *x.shape[2:]), 1, 0)

    return tuple(map(split, arrays))


def filled_up(x: jax.Array, multiple: int) -> jax.Array:
    """(B, S, ...), S filled up with zeros."""
    fill = -x.shape[1] % multiple
    return jnp.pad(x, [(0, 0), (0, fill)] + [(0, 0)] * (x.ndim - 2)) if fill else x


def filled_tags(tags: Tags, multiple: int, padding: int) -> Tags:
    """The same of tags, with `padding` for the document of every padding token: where queries and keys have different
    ones, a kernel need only compare ids.
    """
    positions, documents = tags
    fill = [(0, 0), (0, -positions.shape[1] % multiple)]
    documents = jnp.where(documents >= 0, documents, padding)
    return jnp.pad(positions, fill), jnp.pad(documents, fill, constant_values=padding)


class Spans(NamedTuple):
    """For each block of one side the blocks of the other that have to do with it, int32 (B, blocks).

    All pairs of tokens outside `first <= block < end` are hidden; all pairs inside `clear <= block < clear_end` are
    visible. The latter lies within the former and may be empty.
    """

    first: jax.Array
    clear: jax.Array
    clear_end: jax.Array
    end: jax.Array


class Work(NamedTuple):
    """What there is to do for each tile, two or three blocks of one side that follow one another, its strips.

    All of (B, tiles) and so made in one kernel: where the blocks of the other side that either strip can see begin and
    end, and the `Spans` of both inside. order: (B * tiles,), all tiles of all rows, numbered row by row, in the order
    in which they should begin.
    """

    begin: jax.Array
    stop: jax.Array
    strips: tuple[Spans, ...]
    order: jax.Array


def work_of(spans: Spans, strips: int = 2) -> Work:
    """Tiles of so many blocks, of which the last ones of a row may see nothing; those with the most to do come first. A
    block that is masked takes a third longer.
    """
    spans = jax.tree.map(lambda x: filled_up(x, strips), spans)
    parts = [Spans(*(x.reshape(x.shape[0], -1, strips)[..., i] for x in spans)) for i in range(strips)]
    stop = functools.reduce(jnp.maximum, (part.end for part in parts))
    most = np.iinfo(np.int32).max
    begin = functools.reduce(jnp.minimum, (jnp.where(part.end > part.first, part.first, most) for part in parts))
    begin = jnp.minimum(begin, stop)
    work = sum(4 * (part.end - part.first) - (part.clear_end - part.clear) for part in parts).reshape(-1)
    # lax.sort, not argsort, whose indices are typed as equal on all devices inside a checked shard_map.
    index = jnp.arange(work.size, dtype=jnp.int32) + 0 * work
    order = jax.lax.sort((-work, index), num_keys=1)[1]
    return Work(begin, stop, tuple(jax.tree.map(lambda x: jnp.clip(x, begin, stop), part) for part in parts), order)


class _Extent(NamedTuple):
    """Of each block's tokens that are not padding: the first document and the last one, and the smallest and largest
    position in either; is any token padding.
    """

    documents: Tags
    least: Tags
    most: Tags
    padded: jax.Array


def key_spans(query_tags: Tags, query_block: int, key_tags: Tags, key_block: int) -> Spans:
    """For each block of queries the blocks of keys. Lengths are multiples of the blocks."""
    queries, keys = _extent(query_tags, query_block), _extent(key_tags, key_block)
    return _spans(*_pairs(queries, keys, (slice(None), slice(None), None), (slice(None), None, slice(None))))


def query_spans(query_tags: Tags, query_block: int, key_tags: Tags, key_block: int, of_queries=None) -> Spans:
    """For each block of keys the blocks of queries; all that `of_queries`, their `key_spans`, have this block in."""
    queries, keys = _extent(query_tags, query_block), _extent(key_tags, key_block)
    some, every = _pairs(queries, keys, (slice(None), None, slice(None)), (slice(None), slice(None), None))
    if of_queries is not None:
        block = jax.lax.broadcasted_iota(jnp.int32, some.shape, 1)
        some |= (of_queries.first[:, None] <= block) & (block < of_queries.end[:, None])
    return _spans(some, every)


def _extent(tags: Tags, block: int) -> _Extent:
    """One reduction of all: a kernel each would cost a packed row a tenth of its attention's time."""
    none, most = np.int32(-1), np.int32(np.iinfo(np.int32).max)
    positions, documents = (x.reshape(x.shape[0], -1, block) for x in tags)
    real = documents >= 0
    low, high = (jnp.where(real, x, most) for x in (documents, positions))
    last, far = (jnp.where(real, x, none) for x in (documents, positions))
    padded = (~real).astype(jnp.int32)

    def join(one, other):
        ends = jnp.minimum(one[0], other[0]), jnp.maximum(one[1], other[1])
        least, greatest = [], []
        for i, end in enumerate(ends):
            here = [x[i] == end for x in (one, other)]
            low = [jnp.where(is_in, x[2 + i], most) for is_in, x in zip(here, (one, other), strict=True)]
            high = [jnp.where(is_in, x[4 + i], none) for is_in, x in zip(here, (one, other), strict=True)]
            least.append(jnp.minimum(*low))
            greatest.append(jnp.maximum(*high))
        return *ends, *least, *greatest, jnp.maximum(one[6], other[6])

    arrays, initial = (low, last, high, high, far, far, padded), (most, none, most, most, none, none, np.int32(0))
    first, last, *positions, padded = jax.lax.reduce(arrays, initial, join, (2,))
    return _Extent((first, last), tuple(positions[:2]), tuple(positions[2:]), padded > 0)


def _pairs(queries: _Extent, keys: _Extent, at_query, at_key) -> tuple[jax.Array, jax.Array]:
    """(some pair may be visible, all pairs are), the pairs of blocks laid out as the two indices say.

    Blocks that have one document in common, the last of one and the first of the other, are compared by their positions
    in it: a block across the end of a document has small positions of the next one, which say nothing of the first.
    """
    queries, keys = jax.tree.map(lambda x: x[at_query], queries), jax.tree.map(lambda x: x[at_key], keys)
    (first, last), (first_key, last_key) = queries.documents, keys.documents
    some = (first_key <= last) & (first <= last_key)
    some &= (first_key != last) | (keys.least[0] <= queries.most[1])
    some &= (last_key != first) | (keys.least[1] <= queries.most[0])
    one = (first == last) & (first_key == last_key) & (first == first_key)
    return some, one & ~queries.padded & ~keys.padded & (keys.most[1] <= queries.least[0])


def _spans(some: jax.Array, every: jax.Array) -> Spans:
    """Of (B, blocks, blocks of the other side). Blocks all visible that do not follow one another count as masked."""
    count = np.int32(some.shape[-1])
    block = jax.lax.broadcasted_iota(jnp.int32, some.shape, some.ndim - 1)
    low = [jnp.where(x, block, count) for x in (some, every)]
    high = [jnp.where(x, block + 1, 0) for x in (some, every)]

    def join(one, other):  # in one reduction, which is one kernel
        return *map(jnp.minimum, one[:2], other[:2]), *map(jnp.maximum, one[2:4], other[2:4]), one[4] + other[4]

    initial = (count, count, *[np.int32(0)] * 3)
    arrays = (*low, *high, every.astype(jnp.int32))
    first, clear, end, clear_end, number = jax.lax.reduce(arrays, initial, join, (some.ndim - 1,))
    first, clear = jnp.minimum(first, end), jnp.minimum(clear, end)
    return Spans(first, clear, jnp.where(number == clear_end - clear, clear_end, clear), end)
