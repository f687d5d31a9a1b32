"""The powers of the decay inside a chunk of the Hopper kernels, as the differences of keys.

A token's *key* is its age since the chunk's start, plus DOCUMENT for each document begun since; the state that enters
has key 0. Between two keys lies a distance in time, or more than a chunk where a document lies between: then nothing
is read. Without keys token i has key i + 1, and all powers are computed once for a head, before the loop over chunks.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

ROWS = 64  # tokens of a warpgroup: the height of a wgmma
PAD = 1 << 20  # the key of a padding token
DOCUMENT = 256  # what a new document adds to a key: above any distance within a chunk
META = 32  # floats after a chunk's keys, the key at the chunk's end: slots stay on TMA's 128 byte boundaries

DOWN, ACROSS = (plgpu.Layout.WGMMA.reduce(axis) for axis in (1, 0))  # one value for each row, for each column


class Reader:
    """For the tokens of one share, a block of 64: `read` (64,), the decay since the state that enters, and `inside`."""

    def __init__(self, plan, rate, keys=None):
        self.plan, self.rate, self.keys = plan, rate, keys
        if keys is None:
            self.reads = [self._power(self._to_entry(share)) for share in range(plan.readers)]
            i, j = (_iota((ROWS, ROWS), axis, plgpu.Layout.WGMMA) for axis in (0, 1))
            self.table = self._power(j - i if plan.reverse else i - j)
            row, column = (_iota((ROWS,), 0, layout) for layout in (DOWN, ACROSS))
            row, column = (ROWS - row, column) if plan.reverse else (row, ROWS - column)
            self.beside = self._power(row), self._power(column)

    def read(self, share: int):
        return self.reads[share] if self.keys is None else self._power(self._to_entry(share))

    def inside(self, share: int, block: int, scores):
        """The scores of the share's tokens against a block of tokens, decayed: both (64, 64)."""
        if self.keys is not None:
            return scores * self._power(self._distance(share, block))
        if share == block:
            return scores * self.table
        assert abs(share - block) == 1, "two blocks to a chunk: beside the diagonal a decay is a row times a column"
        row, column = self.beside
        return scores * down(row, ROWS) * across(column, ROWS)

    def _to_entry(self, share: int):
        row = _row_keys(share, self.keys)
        return _end(self.plan, self.keys) - row if self.plan.reverse else row

    def _distance(self, share: int, block: int):
        other = plgpu.load(self.keys.at[pl.ds(block * ROWS, ROWS)], layout=ACROSS)
        # Two padding tokens must not meet at distance 0.
        other = jnp.where(other >= PAD, jnp.float32(2 * PAD), other)
        distance = down(_row_keys(share, self.keys), ROWS) - across(other, ROWS)
        return -distance if self.plan.reverse else distance

    def _power(self, distance):
        return power(self.plan, self.rate, distance)


class Writer:
    """`write`: for each 64 tokens of the chunk (64,), the decay until the state that leaves; `carry`, of a whole chunk."""

    def __init__(self, plan, rate, keys=None):
        end = _end(plan, keys)
        rows = [_row_keys(block, keys) for block in range(plan.readers)]
        self.write = [power(plan, rate, row if plan.reverse else end - row) for row in rows]
        self.carry = power(plan, rate, end)


def power(plan, rate, distance):
    alive = (distance >= 0) & (distance <= plan.chunk)
    return jnp.where(alive, jnp.exp2(distance * -rate), jnp.float32(0))


def _end(plan, keys):
    return jnp.float32(plan.chunk) if keys is None else keys[plan.chunk]


def down(per_row, columns: int):
    return lax.broadcast_in_dim(per_row, (per_row.shape[0], columns), [0])


def across(per_column, rows: int):
    return lax.broadcast_in_dim(per_column, (rows, per_column.shape[0]), [1])


def _row_keys(block: int, keys):
    if keys is None:
        return _iota((ROWS,), 0, DOWN) + (block * ROWS + 1.0)
    return plgpu.load(keys.at[pl.ds(block * ROWS, ROWS)], layout=DOWN)


def _iota(shape, axis: int, layout):
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=layout).astype(jnp.float32)
