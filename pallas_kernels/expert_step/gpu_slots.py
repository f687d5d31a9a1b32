"""Which expert has which rows, in one launch on Hopper: what a sort and some scatters would say in ten.

All is comparing: tables of 64 experts, choices or places along both sides, summed along one; what is counted of many
choices is a product of such tables. Numbers are whole and small, so that float32 has them. A *slot* is an expert with
some rows; slots with an expert come first.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.few_rows import ROWS
from pallas_kernels.projection_step import gpu_stream as stream

TABLE = plgpu.Layout.WGMMA
DOWN, ACROSS = TABLE.reduce(1), TABLE.reduce(0)
MOST_EXPERTS = ROWS
MOST_CHOICES = 24 * ROWS  # that `gathered` takes: a table of each 64 in shared memory
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


class _Scratch(NamedTuple):
    """Tables of ones and zeros, whose products count."""

    is_of: jax.Ref  # of every 64 choices: whether a choice (down) is an expert (across)
    before: jax.Ref  # whether a choice (across) is before another (down)
    ones: jax.Ref


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
    square = stream.tile(ROWS, ROWS, width=ROWS)
    scratch = _Scratch(stream.tile(A * C // ROWS, ROWS, ROWS, width=ROWS), square, square)
    kernel = _kernel(_gathered_program, _Plan(rows, experts), outs, blocks, [scratch])
    found, weight, row, place = kernel(choice_AC, weight_AC)
    return Slots(found[:, None], weight, None), row, place


def _kernel(program, plan: _Plan, outs, programs: int, scratch=()):
    return plgpu.kernel(
        functools.partial(program, plan),
        out_type=outs,
        scratch_types=scratch,
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


def _gathered_program(plan: _Plan, choice, weight, found_out, weight_out, row_out, place_out, scratch: _Scratch):
    block, (A, C), square = lax.axis_index("block"), choice.shape, (ROWS, ROWS)
    line, column, none = _ids(square, 0), _ids(square, 1), jnp.zeros(square, jnp.float32)
    parts = [(a, first) for a in range(A) for first in range(0, C, ROWS)]  # of 64 choices each, one after the other
    chosen = [_choices(plan, choice, *part, ROWS, DOWN) for part in parts]
    told = [plgpu.load(weight.at[a, pl.ds(first, ROWS)], layout=DOWN, optimized=False) for a, first in parts]
    scratch.ones[...] = jnp.ones(square, jnp.bfloat16)
    scratch.before[...] = _ones(column < line).astype(jnp.bfloat16)
    for number, mine in enumerate(chosen):
        scratch.is_of.at[number][...] = _ones(_down(mine, square) == column).astype(jnp.bfloat16)
    plgpu.commit_smem()
    start, found = _starts(plan, scratch)
    places, ahead = [], none  # of every expert, those of the parts before
    for number, mine in enumerate(chosen):
        is_of = scratch.is_of.at[number]
        rank = _product(scratch.before, is_of) + ahead + _across(start, square) * GATHERED
        place = jnp.where(_down(mine, square) == column, rank, none).sum(axis=1)
        places.append(jnp.where(mine >= 0, place, jnp.full(place.shape, NOWHERE, jnp.float32)))
        ahead += _product(scratch.ones, is_of)
    row, weights = none, none
    for (_, first), place, mine in zip(parts, places, told, strict=True):
        here = _down(place, square) == (column + block * ROWS).astype(jnp.float32)
        row += jnp.where(here, (line + first).astype(jnp.float32), none)
        weights += jnp.where(here, _down(mine, square), none)
    row_out[pl.ds(block * ROWS, ROWS)] = row.sum(axis=0).astype(jnp.int32)
    weight_out[pl.ds(block * ROWS, ROWS)] = weights.sum(axis=0)

    @pl.when(block == 0)
    def _():
        found_out[...] = found
        for (a, first), place in zip(parts, places, strict=True):
            place_out[a, pl.ds(first, ROWS)] = place.astype(jnp.int32)


def _starts(plan: _Plan, scratch: _Scratch):
    """(the first slot of every expert, across; the expert of every slot, down)."""
    square = (ROWS, ROWS)
    line, column, none = _ids(square, 0), _ids(square, 1), jnp.zeros(square, jnp.float32)
    size = none  # experts down, the same in every column
    for number in range(scratch.is_of.shape[0]):
        size += _product(scratch.is_of.at[number].transpose((1, 0)), scratch.ones)
    slots = ((size.astype(jnp.int32) + (GATHERED - 1)) >> (GATHERED.bit_length() - 1)).astype(jnp.float32)
    start, end = (jnp.where(seen, slots, none).sum(axis=0) for seen in (line < column, line <= column))
    past = (_across(end, square) <= line.astype(jnp.float32)) & (column < plan.experts)
    return start, _ones(past).sum(axis=1).astype(jnp.int32)


def _product(left, right):
    def run(total):
        plgpu.wgmma(total, left, right)
        plgpu.wgmma_wait(0)
        return total[...]

    return pl.run_scoped(run, plgpu.ACC((ROWS, ROWS), jnp.float32))


def _choices(plan: _Plan, choice, a: int, first: int, width: int, layout):
    """int32 (width,), -1 where there is no row or no expert."""
    chosen = plgpu.load(choice.at[a, pl.ds(first, width)], layout=layout, optimized=False)
    ids = plgpu.broadcasted_iota(jnp.int32, (width,), 0, layout=layout) + first
    return jnp.where((ids < plan.rows) & (chosen < plan.experts), chosen, jnp.full((width,), -1, jnp.int32))


def _ones(mask):
    return jnp.where(mask, jnp.ones(mask.shape, jnp.float32), jnp.zeros(mask.shape, jnp.float32))


def _ids(shape, axis: int):
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=TABLE)


def _down(x, shape):
    return lax.broadcast_in_dim(x, shape, [0])


def _across(x, shape):
    return lax.broadcast_in_dim(x, shape, [1])
