"""The powers of the decay inside a chunk of the Hopper kernels, as the differences of ages.

A token's age counts here from the chunk's start, and every document begun since adds DOCUMENT; the state that enters
has age 0. Between two ages lies a distance in time, or more than a chunk where a document lies between: then nothing
is read. Where no ages are given token i has age i + 1, and all powers are computed once for a head, before the loop
over chunks.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

TOKENS = 64  # of a warpgroup: the height of a wgmma
PAD = 1 << 20  # the age of a padding token
DOCUMENT = 256  # what a new document adds to an age: a power of two above any distance within a chunk
META = 32  # floats after a chunk's ages, the age at the chunk's end: slots stay on TMA's 128 byte boundaries

DOWN, ACROSS = (plgpu.Layout.WGMMA.reduce(axis) for axis in (1, 0))  # one value for each row, for each column


class Reader:
    """Decays for the TOKENS tokens of one reader, in any chunk that is all of one document.

    Only what will be used may be computed: Mosaic GPU finds no layout for a value that nobody reads (jax 0.11).
    """

    def __init__(self, plan, reader: int, rate):
        self.plan, self.reader, self.rate = plan, reader, rate
        self.factors = {block: self._factors(block) for block in plan.blocks(reader)}

    def read(self):
        """The decay since the state that enters, (TOKENS,)."""
        age = _ages(self.reader, None)
        return self.power(self.plan.chunk - age if self.plan.reverse else age)

    def inside(self, block: int, scores):
        """The scores of the reader's tokens against a block of tokens, decayed: both (TOKENS, TOKENS)."""
        for factor in self.factors[block]:
            scores = scores * factor()
        return scores

    def power(self, distance):
        return power(self.plan, self.rate, distance)

    def _factors(self, block: int):
        """Decays between the reader's tokens and a block: a table on the diagonal, beside it a row times a column."""
        between = (block - self.reader if self.plan.reverse else self.reader - block) * TOKENS
        if between:
            row, column = (_iota((TOKENS,), 0, layout) for layout in (DOWN, ACROSS))
            row, column = (between - row, column) if self.plan.reverse else (row, between - column)
            row, column = self.power(row), self.power(column)
            return [lambda: down(row, TOKENS), lambda: across(column, TOKENS)]
        i, j = (_iota((TOKENS, TOKENS), axis, plgpu.Layout.WGMMA) for axis in (0, 1))
        table = self.power(j - i if self.plan.reverse else i - j)
        return [lambda: table]


class PackedReader:
    """The same for one chunk of a packed sequence."""

    def __init__(self, plain: Reader, ages):
        self.plain, self.ages = plain, ages
        self.own, self.end = _ages(plain.reader, ages), _end(plain.plan, ages)

    def read(self):
        return self.plain.power(self.end - self.own if self.plain.plan.reverse else self.own)

    def inside(self, block: int, scores):
        # Most chunks are all of one document, without padding: the chunk's last token is as old as the chunk is long.
        undivided = self.end == self.plain.plan.chunk
        plain = functools.partial(self.plain.inside, block, scores)
        return lax.cond(undivided, plain, lambda: self._divided(block, scores))

    def _divided(self, block: int, scores):
        """Boundaries alone hide scores, a comparison each; where padding holds time still it takes exponentials."""
        plan = self.plain.plan
        other = plgpu.load(self.ages.at[pl.ds(block * TOKENS, TOKENS)], layout=ACROSS)
        padded = (self.end.astype(jnp.int32) & (DOCUMENT - 1)) != plan.chunk  # the end is younger than the chunk long

        def exponentials():
            # Two padding tokens must not meet at distance 0.
            apart = jnp.where(other >= PAD, jnp.float32(2 * PAD), other)
            distance = down(self.own, TOKENS) - across(apart, TOKENS)
            return scores * self.plain.power(-distance if plan.reverse else distance)

        def comparisons():
            furthest = down(self.own + plan.chunk if plan.reverse else self.own - plan.chunk, TOKENS)
            age = across(other, TOKENS)
            near = age <= furthest if plan.reverse else age >= furthest
            return jnp.where(near, self.plain.inside(block, scores), jnp.float32(0))

        return lax.cond(padded, exponentials, comparisons)


class Writer:
    """`write`: of each block of a chunk (TOKENS,), the decay until the state that leaves; `carry`: from end to end."""

    def __init__(self, plan, rate, ages=None):
        end = _end(plan, ages)
        blocks = [_ages(block, ages) for block in range(plan.readers)]
        self.write = [power(plan, rate, age if plan.reverse else end - age) for age in blocks]
        self.carry = power(plan, rate, end)


def power(plan, rate, distance):
    alive = (distance >= 0) & (distance <= plan.chunk)
    return jnp.where(alive, jnp.exp2(distance * -rate), jnp.float32(0))


def down(per_row, columns: int):
    return lax.broadcast_in_dim(per_row, (per_row.shape[0], columns), [0])


def across(per_column, rows: int):
    return lax.broadcast_in_dim(per_column, (rows, per_column.shape[0]), [1])


def _end(plan, ages):
    """The age at the chunk's end."""
    return jnp.float32(plan.chunk) if ages is None else ages[plan.chunk]


def _ages(block: int, ages):
    """Of the tokens of a block, (TOKENS,) float32, down."""
    if ages is None:
        return _iota((TOKENS,), 0, DOWN) + (block * TOKENS + 1.0)
    return plgpu.load(ages.at[pl.ds(block * TOKENS, TOKENS)], layout=DOWN)


def _iota(shape, axis: int, layout):
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=layout).astype(jnp.float32)
