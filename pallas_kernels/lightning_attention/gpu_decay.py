"""The powers of the decay inside a chunk of the Hopper kernels, as the differences of keys.

A token's *key* is its age since the chunk's start, plus DOCUMENT for each document begun since; the state that enters
has key 0. Between two keys lies a distance in time, or more than a chunk where a document lies between: then nothing
is read. Without keys token i has key i + 1, and all powers are computed once for a head, before the loop over chunks.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

ROWS = 64  # tokens of a warpgroup: the height of a wgmma
PAD = 1 << 20  # the key of a padding token
DOCUMENT = 256  # what a new document adds to a key: a power of two above any distance within a chunk
META = 32  # floats after a chunk's keys, the key at the chunk's end: slots stay on TMA's 128 byte boundaries

DOWN, ACROSS = (plgpu.Layout.WGMMA.reduce(axis) for axis in (1, 0))  # one value for each row, for each column


class Reader:
    """Decays for the 64 tokens of one reader, in any chunk that is all of one document.

    Only what will be used may be computed: Mosaic GPU finds no layout for a value that nobody reads (jax 0.11).
    """

    def __init__(self, plan, reader: int, rate):
        self.plan, self.reader, self.rate = plan, reader, rate
        self.factors = {block: self._factors(block) for block in plan.blocks(reader)}

    def read(self):
        """The decay since the state that enters, (64,)."""
        row = _row_keys(self.reader, None)
        return self.power(self.plan.chunk - row if self.plan.reverse else row)

    def inside(self, block: int, scores):
        """The scores of the reader's tokens against a block of tokens, decayed: both (64, 64)."""
        for factor in self.factors[block]:
            scores = scores * factor()
        return scores

    def power(self, distance):
        return power(self.plan, self.rate, distance)

    def _factors(self, block: int):
        """Decays between the reader's tokens and a block: a table on the diagonal, beside it a row times a column."""
        between = (block - self.reader if self.plan.reverse else self.reader - block) * ROWS
        if between:
            row, column = (_iota((ROWS,), 0, layout) for layout in (DOWN, ACROSS))
            row, column = (between - row, column) if self.plan.reverse else (row, between - column)
            row, column = self.power(row), self.power(column)
            return [lambda: down(row, ROWS), lambda: across(column, ROWS)]
        i, j = (_iota((ROWS, ROWS), axis, plgpu.Layout.WGMMA) for axis in (0, 1))
        table = self.power(j - i if self.plan.reverse else i - j)
        return [lambda: table]


class KeyedReader:
    """The same for one chunk of a packed sequence."""

    def __init__(self, plain: Reader, keys):
        self.plain, self.keys = plain, keys
        self.row, self.end = _row_keys(plain.reader, keys), _end(plain.plan, keys)

    def read(self):
        return self.plain.power(self.end - self.row if self.plain.plan.reverse else self.row)

    def inside(self, block: int, scores):
        # Most chunks are all of one document, without padding: the chunk's last token is as old as the chunk is long.
        undivided = self.end == self.plain.plan.chunk
        plain = functools.partial(self.plain.inside, block, scores)
        return lax.cond(undivided, plain, lambda: self._divided(block, scores))

    def _divided(self, block: int, scores):
        """Boundaries alone hide scores, a comparison each; where padding holds time still it takes exponentials."""
        plan = self.plain.plan
        other = plgpu.load(self.keys.at[pl.ds(block * ROWS, ROWS)], layout=ACROSS)
        padded = (self.end.astype(jnp.int32) & (DOCUMENT - 1)) != plan.chunk  # the end is younger than the chunk long

        def exponentials():
            # Two padding tokens must not meet at distance 0.
            column = jnp.where(other >= PAD, jnp.float32(2 * PAD), other)
            distance = down(self.row, ROWS) - across(column, ROWS)
            return scores * self.plain.power(-distance if plan.reverse else distance)

        def comparisons():
            furthest = down(self.row + plan.chunk if plan.reverse else self.row - plan.chunk, ROWS)
            column = across(other, ROWS)
            near = column <= furthest if plan.reverse else column >= furthest
            return jnp.where(near, self.plain.inside(block, scores), jnp.float32(0))

        return lax.cond(padded, exponentials, comparisons)


class Writer:
    """`write`: for each 64 tokens of a chunk (64,), the decay until the state that leaves; `carry`, from end to end."""

    def __init__(self, plan, rate, keys=None):
        end = _end(plan, keys)
        rows = [_row_keys(block, keys) for block in range(plan.readers)]
        self.write = [power(plan, rate, row if plan.reverse else end - row) for row in rows]
        self.carry = power(plan, rate, end)


def power(plan, rate, distance):
    alive = (distance >= 0) & (distance <= plan.chunk)
    return jnp.where(alive, jnp.exp2(distance * -rate), jnp.float32(0))


def down(per_row, columns: int):
    return lax.broadcast_in_dim(per_row, (per_row.shape[0], columns), [0])


def across(per_column, rows: int):
    return lax.broadcast_in_dim(per_column, (rows, per_column.shape[0]), [1])


def _end(plan, keys):
    return jnp.float32(plan.chunk) if keys is None else keys[plan.chunk]


def _row_keys(block: int, keys):
    if keys is None:
        return _iota((ROWS,), 0, DOWN) + (block * ROWS + 1.0)
    return plgpu.load(keys.at[pl.ds(block * ROWS, ROWS)], layout=DOWN)


def _iota(shape, axis: int, layout):
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=layout).astype(jnp.float32)
