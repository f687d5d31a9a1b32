"""Which expert has which rows, in one launch on Hopper: what a sort and some scatters would say in ten.

All is comparing: tables of 64 experts, choices or places down and as many choices across, summed along one side.
Numbers are float32, whole and small. A *slot* is an expert with some rows; slots with an expert come first.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.few_rows import ROWS

TABLE = plgpu.Layout.WGMMA
DOWN, ACROSS = TABLE.reduce(1), TABLE.reduce(0)
MOST_EXPERTS = ROWS
GATHERED = 32  # rows of a slot at most, where each slot has its own
NOWHERE = float(2**20)  # a place that no slot has


class Slots(NamedTuple):
    """experts int32 (at least S, ...), of slot s at [s, 0], E where it has none. weight float32: of slot s from its
    `stride` s on. count int32 (1,), slots that have an expert; None: all, or none where the first has none.
    """

    experts: jax.Array
    weight: jax.Array
    count: jax.Array | None


class _Plan(NamedTuple):
    rows: int
    experts: int


@functools.partial(jax.jit, static_argnames=("rows", "experts"))
def shared(choice_AC: jax.Array, weight_AC: jax.Array, *, rows: int, experts: int) -> Slots:
    """The slots of up to 64 rows, by expert; each has all rows (stride 64), weighted 0 where they chose another."""
    outs = [
        jax.ShapeDtypeStruct((ROWS,), jnp.int32),
        jax.ShapeDtypeStruct((ROWS, ROWS), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    ]
    found, weight, count = _kernel(_shared_program, _Plan(rows, experts), outs, 1)(choice_AC, weight_AC)
    return Slots(found[:, None], weight.reshape(-1), count)


@functools.partial(jax.jit, static_argnames=("rows", "experts"))
def gathered(choice_AC: jax.Array, weight_AC: jax.Array, *, rows: int, experts: int):
    """(slots of GATHERED rows each, the row at every place int32 (places,), the place of every choice int32 (A, C)).

    A row in no place stands for none; a choice of no expert has a place after the last.
    """
    A, C = choice_AC.shape
    blocks = -(-(experts + A * rows // GATHERED) * GATHERED // ROWS)
    outs = [
        jax.ShapeDtypeStruct((ROWS,), jnp.int32),
        jax.ShapeDtypeStruct(((blocks + 1) * ROWS,), jnp.float32),
        jax.ShapeDtypeStruct((blocks * ROWS,), jnp.int32),
        jax.ShapeDtypeStruct((A, C), jnp.int32),
    ]
    kernel = _kernel(_gathered_program, _Plan(rows, experts), outs, blocks)
    found, weight, row, place = kernel(choice_AC, weight_AC)
    return Slots(found[:, None], weight, None), row, place


def _kernel(program, plan: _Plan, outs, programs: int):
    return plgpu.kernel(
        functools.partial(program, plan),
        out_type=outs,
        grid=(programs,),
        grid_names=("block",),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )


def _shared_program(plan: _Plan, choice, weight, found_out, weight_out, count_out):
    shape = (ROWS, ROWS)
    active_down, active_across = jnp.zeros(ROWS, jnp.float32), jnp.zeros(ROWS, jnp.float32)
    for a in range(choice.shape[0]):
        across, down = (_choices(plan, choice, a, 0, ROWS, layout) for layout in (ACROSS, DOWN))
        active_down = jnp.maximum(active_down, _ones(_ids(shape, 0) == _across(across, shape)).max(axis=1))
        active_across = jnp.maximum(active_across, _ones(_down(down, shape) == _ids(shape, 1)).max(axis=0))
    rank = (_ones(_ids(shape, 0) < _ids(shape, 1)) * _down(active_down, shape)).sum(axis=0)
    has = (_across(rank, shape) == _ids(shape, 0).astype(jnp.float32)) & (_across(active_across, shape) > 0)
    none = jnp.full(shape, plan.experts, jnp.int32)
    found = jnp.where(has, _ids(shape, 1), none).min(axis=1)
    found_out[...] = found
    total = jnp.zeros(shape, jnp.float32)
    for a in range(choice.shape[0]):
        mine = _across(_choices(plan, choice, a, 0, ROWS, ACROSS), shape) == _down(found, shape)
        told = plgpu.load(weight.at[a, pl.ds(0, ROWS)], layout=ACROSS, optimized=False)
        total += jnp.where(mine, _across(told, shape), jnp.zeros(shape, jnp.float32))
    weight_out[...] = total
    count_out[0] = active_down.sum(axis=0).astype(jnp.int32)


def _gathered_program(plan: _Plan, choice, weight, found_out, weight_out, row_out, place_out):
    block, (A, C) = lax.axis_index("block"), choice.shape
    square, wide = (ROWS, ROWS), (ROWS, C)
    size_down, size_across = jnp.zeros(ROWS, jnp.float32), jnp.zeros(ROWS, jnp.float32)
    for a in range(A):
        chosen = _choices(plan, choice, a, 0, C, ACROSS)
        size_down += _ones(_ids(wide, 0) == _across(chosen, wide)).sum(axis=1)
        for first in range(0, C, ROWS):
            down = _choices(plan, choice, a, first, ROWS, DOWN)
            size_across += _ones(_down(down, square) == _ids(square, 1)).sum(axis=0)
    slots_down, slots_across = (_slots(size) for size in (size_down, size_across))
    before = _ones(_ids(square, 1) < _ids(square, 0)) * _across(slots_across, square)
    start_down = before.sum(axis=1)
    end_across = (_ones(_ids(square, 0) <= _ids(square, 1)) * _down(slots_down, square)).sum(axis=0)
    row, told = jnp.zeros(ROWS, jnp.float32), jnp.zeros(ROWS, jnp.float32)
    for a in range(A):
        place = _place(plan, choice, a, start_down)
        pl.when(block == 0)(lambda a=a, place=place: _put(place_out.at[a], place.astype(jnp.int32)))
        mine = _across(place, wide) == (_ids(wide, 0) + block * ROWS).astype(jnp.float32)
        weights = plgpu.load(weight.at[a], layout=ACROSS, optimized=False)
        row += (_ones(mine) * _ids(wide, 1).astype(jnp.float32)).sum(axis=1)
        told += jnp.where(mine, _across(weights, wide), jnp.zeros(wide, jnp.float32)).sum(axis=1)
    row_out[pl.ds(block * ROWS, ROWS)] = row.astype(jnp.int32)
    weight_out[pl.ds(block * ROWS, ROWS)] = told

    @pl.when(block == 0)
    def _():
        past = _ones(_across(end_across, square) <= _ids(square, 0).astype(jnp.float32))
        past = jnp.where(_ids(square, 1) < plan.experts, past, jnp.zeros(square, jnp.float32))
        found_out[...] = past.sum(axis=1).astype(jnp.int32)


def _place(plan: _Plan, choice, a: int, start_down):
    """The places (C,) of the a-th choices: after those before them of the same expert."""
    A, C = choice.shape
    wide = (ROWS, C)
    chosen = _across(_choices(plan, choice, a, 0, C, ACROSS), wide)
    is_of = _ones(_ids(wide, 0) == chosen)
    place = (is_of * _down(start_down, wide)).sum(axis=0) * GATHERED
    for other in range(a + 1):
        for first in range(0, C, ROWS):
            same = _down(_choices(plan, choice, other, first, ROWS, DOWN), wide) == chosen
            if other == a:
                same = same & (_ids(wide, 0) + first < _ids(wide, 1))
            place += _ones(same).sum(axis=0)
    exists = is_of.sum(axis=0) > 0
    return jnp.where(exists, place, jnp.full((C,), NOWHERE, jnp.float32))


def _choices(plan: _Plan, choice, a: int, first: int, width: int, layout):
    """int32 (width,), -1 where there is no row or no expert."""
    chosen = plgpu.load(choice.at[a, pl.ds(first, width)], layout=layout, optimized=False)
    ids = plgpu.broadcasted_iota(jnp.int32, (width,), 0, layout=layout) + first
    return jnp.where((ids < plan.rows) & (chosen < plan.experts), chosen, jnp.full((width,), -1, jnp.int32))


def _slots(size):
    return ((size.astype(jnp.int32) + (GATHERED - 1)) >> (GATHERED.bit_length() - 1)).astype(jnp.float32)


def _put(ref, value):
    ref[...] = value


def _ones(mask):
    return jnp.where(mask, jnp.ones(mask.shape, jnp.float32), jnp.zeros(mask.shape, jnp.float32))


def _ids(shape, axis: int):
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=TABLE)


def _down(x, shape):
    return lax.broadcast_in_dim(x, shape, [0])


def _across(x, shape):
    return lax.broadcast_in_dim(x, shape, [1])
