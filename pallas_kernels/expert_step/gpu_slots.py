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
    shape, A = (ROWS, ROWS), choice.shape[0]
    across = [_choices(plan, choice, a, 0, ROWS, ACROSS) for a in range(A)]
    down = [_choices(plan, choice, a, 0, ROWS, DOWN) for a in range(A)]
    told = [plgpu.load(weight.at[a, pl.ds(0, ROWS)], layout=ACROSS, optimized=False) for a in range(A)]
    line, column = _ids(shape, 0), _ids(shape, 1)
    mine, whose = (
        functools.reduce(jnp.logical_or, tables)
        for tables in (
            [line == _across(chosen, shape) for chosen in across],
            [_down(chosen, shape) == column for chosen in down],
        )
    )
    active_down, active_across = _ones(mine).max(axis=1), _ones(whose).max(axis=0)
    rank = jnp.where(line < column, _down(active_down, shape), jnp.zeros(shape, jnp.float32)).sum(axis=0)
    has = (_across(rank, shape) == line.astype(jnp.float32)) & (_across(active_across, shape) > 0)
    found = jnp.where(has, column, jnp.full(shape, plan.experts, jnp.int32)).min(axis=1)
    found_out[...] = found
    total = jnp.zeros(shape, jnp.float32)
    for chosen, weights in zip(across, told, strict=True):
        is_chosen = _across(chosen, shape) == _down(found, shape)
        total += jnp.where(is_chosen, _across(weights, shape), jnp.zeros(shape, jnp.float32))
    weight_out[...] = total
    count_out[0] = active_down.sum(axis=0).astype(jnp.int32)


def _gathered_program(plan: _Plan, choice, weight, found_out, weight_out, row_out, place_out):
    block, (A, C) = lax.axis_index("block"), choice.shape
    square, wide, firsts = (ROWS, ROWS), (ROWS, C), range(0, C, ROWS)
    across = [_choices(plan, choice, a, 0, C, ACROSS) for a in range(A)]
    down = [[_choices(plan, choice, a, first, ROWS, DOWN) for first in firsts] for a in range(A)]
    told = [plgpu.load(weight.at[a], layout=ACROSS, optimized=False) for a in range(A)]
    line, column, places = _ids(square, 0), _ids(square, 1), _ids(wide, 0)
    mine = [_ones(places == _across(chosen, wide)) for chosen in across]  # experts down, choices across
    size_down = sum(mine).sum(axis=1)
    size_across = sum(_ones(_down(chosen, square) == column) for part in down for chosen in part).sum(axis=0)
    slots_down, slots_across = (_slots(size) for size in (size_down, size_across))
    none = jnp.zeros(square, jnp.float32)
    start_down = jnp.where(column < line, _across(slots_across, square), none).sum(axis=1)
    row, weights = jnp.zeros(wide, jnp.float32), jnp.zeros(wide, jnp.float32)
    for a in range(A):
        place = _place(a, across[a], down, mine[a] * _down(start_down, wide))
        pl.when(block == 0)(lambda a=a, place=place: _put(place_out.at[a], place.astype(jnp.int32)))
        here = _across(place, wide) == (places + block * ROWS).astype(jnp.float32)
        row += jnp.where(here, _ids(wide, 1).astype(jnp.float32), jnp.zeros(wide, jnp.float32))
        weights += jnp.where(here, _across(told[a], wide), jnp.zeros(wide, jnp.float32))
    row_out[pl.ds(block * ROWS, ROWS)] = row.sum(axis=1).astype(jnp.int32)
    weight_out[pl.ds(block * ROWS, ROWS)] = weights.sum(axis=1)

    @pl.when(block == 0)
    def _():
        end = jnp.where(line <= column, _down(slots_down, square), none).sum(axis=0)
        past = (_across(end, square) <= line.astype(jnp.float32)) & (column < plan.experts)
        found_out[...] = _ones(past).sum(axis=1).astype(jnp.int32)


def _place(a: int, chosen, down, starts):
    """The places (C,) of the a-th choices: after those before them of the same expert, whose slots start there."""
    wide = starts.shape
    ahead = starts * GATHERED
    for other in range(a + 1):
        for number, before in enumerate(down[other]):
            same = _down(before, wide) == _across(chosen, wide)
            if other == a:
                same = same & (_ids(wide, 0) + number * ROWS < _ids(wide, 1))
            ahead += _ones(same)
    return jnp.where(chosen >= 0, ahead.sum(axis=0), jnp.full(chosen.shape, NOWHERE, jnp.float32))


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
