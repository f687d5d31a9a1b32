"""Experts of few rows on Hopper whose matrices are int8: as `gpu.py`, with half of the bytes read, and turned.

    (x W)' = W' x'      the columns of W down, widened in registers (`int8_gpu`), the rows beside each other

Sums are scaled where they are accumulated: once in the inward half, slot by slot in the outward one, which adds up
several experts' products.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import int8_gpu
from pallas_kernels.expert_step.gpu_int8_stream import Cut, Ring, across, added_up, exchange, launch, rows_tile
from pallas_kernels.expert_step.gpu_slots import Slots
from pallas_kernels.few_rows import ROWS
from pallas_kernels.int8 import Int8
from pallas_kernels.int8_gpu import COLUMNS, ROW
from pallas_kernels.projection_step import gpu_stream as stream

UP, UP_NARROW = Cut(), Cut(warpgroups=4, width=64, stages=4)
UP_TALL = Cut(width=64, stages=3)  # of more than 16 rows: sums of a program's columns have to fit into registers
DOWN, DOWN_EACH = Cut(depth=96, stages=4), Cut()
SPLITS = 16  # of the outward product's sum
PROGRAMS = 132  # of fewer the columns are narrower


class _UpInputs(NamedTuple):
    experts: jax.Ref  # int32 (at least S, ...), of slot s at [s, 0]
    gate: Int8  # (L, E, D, F)
    layer: jax.Ref  # int32 (1,)
    up: Int8  # (L, E, D, F)
    weight: jax.Ref  # float32, of each slot one after the other
    x: jax.Ref  # bfloat16 (1 or S, R, D)


class _UpScratch(NamedTuple):
    full: jax.Ref
    gate: jax.Ref
    left: jax.Ref
    others: jax.Ref | None  # float32: sums of the warpgroups after the first
    others_full: jax.Ref | None
    staged: jax.Ref
    up: jax.Ref


@functools.partial(jax.jit, static_argnames=("count", "cut"))
def up(x_XRD, gate: Int8, up: Int8, slots: Slots, layer, *, count: int, cut: Cut | None = None):
    """hidden (S, R, F) = weight * silu(x G) * (x U); of slots without an expert nothing is written."""
    S, (_, R, D), F = count, x_XRD.shape, gate.values.shape[3]
    if cut is None and R > 16:
        cut = UP_TALL
    elif cut is None:
        cut = UP if count * F // UP.width >= PROGRAMS else UP_NARROW
    cut = cut.fitting(D, F)
    warpgroups, depth, width, stages = cut
    slots_of_all = warpgroups * stages
    scratch = _UpScratch(
        full=plgpu.Barrier(num_arrivals=3, num_barriers=slots_of_all),
        gate=int8_gpu.tile(slots_of_all, depth, width),
        left=rows_tile(slots_of_all, R, depth),
        **exchange(cut, 2, R),
        staged=stream.tile(R, width, width=width),
        up=int8_gpu.tile(slots_of_all, depth, width),
    )
    out = jax.ShapeDtypeStruct((S, R, F), x_XRD.dtype)
    kernel = launch(functools.partial(_up_program, cut), [out], scratch, (S, F // width), cut.warpgroups)
    (hidden,) = kernel(_UpInputs(slots.experts, gate, layer, up, slots.weight, x_XRD))
    return hidden


def _up_program(cut: Cut, inputs: _UpInputs, out, scratch: _UpScratch):
    warpgroups, depth, width, stages = cut
    slot, column, warpgroup = lax.axis_index("x"), lax.axis_index("y") * width, lax.axis_index("warpgroup")
    _, rows, D = inputs.x.shape
    expert, layer, steps = inputs.experts[slot, 0], inputs.layer[0], D // depth // warpgroups

    @pl.when(expert < inputs.gate.values.shape[1])
    def _():
        columns, mine = pl.ds(column, width), slot if inputs.x.shape[0] > 1 else 0
        ring = Ring(warpgroup * stages, scratch.full, stages)

        def fill(step, at):
            deep, full = pl.ds((warpgroup * steps + step) * depth, depth), scratch.full.at[at]
            plgpu.copy_gmem_to_smem(inputs.gate.values.at[layer, expert, deep, columns], scratch.gate.at[at], full)
            plgpu.copy_gmem_to_smem(inputs.up.values.at[layer, expert, deep, columns], scratch.up.at[at], full)
            plgpu.copy_gmem_to_smem(inputs.x.at[mine, :, deep], scratch.left.at[at], full)

        sums = _products([scratch.gate, scratch.up], scratch.left, ring, steps, fill)
        sums = added_up(warpgroup, sums, scratch.others, scratch.others_full)

        @pl.when(warpgroup == 0)
        def _():
            own = pl.ds(slot * (ROWS if inputs.x.shape[0] == 1 else rows), rows)
            weight = plgpu.load(inputs.weight.at[own], layout=ROW, optimized=False)
            for part, (gate, up) in enumerate(zip(*sums(), strict=True)):
                place = pl.ds(column + part * COLUMNS, COLUMNS)
                gate = gate * across(inputs.gate.scale.at[layer, expert, place], rows)
                up = up * across(inputs.up.scale.at[layer, expert, place], rows)
                hidden = gate / (1.0 + jnp.exp(-gate)) * up * lax.broadcast_in_dim(weight, gate.shape, [0])
                scratch.staged.at[:, pl.ds(part * COLUMNS, COLUMNS)][...] = hidden.astype(out.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(scratch.staged, out.at[slot, :, columns])
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _products(matrices, left, ring: Ring, steps: int, fill):
    """Of each matrix the columns' parts: float32 (rows, COLUMNS) each, this warpgroup's share of the sum."""
    parts, rows = matrices[0].shape[2] // COLUMNS, left.shape[1]

    def one(step, totals):
        def use(slot):
            blocks = [(matrix.at[slot], part) for matrix in matrices for part in range(parts)]
            return int8_gpu.add_products(totals, blocks, left.at[slot])

        return ring.take(step, steps, fill, use)

    ring.begin(steps, fill)
    totals = lax.fori_loop(0, steps, one, [int8_gpu.zeros(rows)] * (len(matrices) * parts))
    totals = [int8_gpu.turned(total) for total in totals]
    return [totals[first : first + parts] for first in range(0, len(totals), parts)]


class _DownInputs(NamedTuple):
    count: jax.Ref | None  # int32 (1,)
    down: Int8  # (L, E, F, D)
    experts: jax.Ref
    hidden: jax.Ref  # bfloat16 (S, R, F)
    layer: jax.Ref  # int32 (1,)


class _DownScratch(NamedTuple):
    full: jax.Ref
    left: jax.Ref
    others: jax.Ref | None
    others_full: jax.Ref | None
    right: jax.Ref
    staged: jax.Ref


@functools.partial(jax.jit, static_argnames=("splits", "cut"))
def down(hidden_SRF, down: Int8, slots: Slots, layer, *, splits: int = SPLITS, cut: Cut = DOWN):
    """float32 (splits, R, D): hidden W_down summed over the slots, a part of F in each split."""
    F = hidden_SRF.shape[2]
    if F % (splits * cut.depth):  # sizes that nobody has asked to be fast
        splits, cut = 1, cut._replace(depth=64)
    return _down(hidden_SRF, down, slots, layer, (splits, cut))


@functools.partial(jax.jit, static_argnames="cut")
def down_each(hidden_SRF, down: Int8, slots: Slots, layer, *, cut: Cut = DOWN_EACH):
    """(S, R, D) float32: hidden W_down of each slot; of slots without an expert nothing is written."""
    return _down(hidden_SRF, down, slots, layer, (None, cut.fitting(hidden_SRF.shape[2], down.values.shape[3])))


def _down(hidden_SRF, down: Int8, slots: Slots, layer, plan: tuple[int | None, Cut]):
    """plan: splits, None where each slot has a result of its own; how it is cut."""
    (S, R, _), D = hidden_SRF.shape, down.values.shape[3]
    splits, cut = plan
    if D % cut.width:
        cut = cut._replace(width=COLUMNS)
    warpgroups, depth, width, stages = cut
    outs, slots_of_all = splits or S, warpgroups * stages
    scratch = _DownScratch(
        full=plgpu.Barrier(num_arrivals=2, num_barriers=slots_of_all),
        left=rows_tile(slots_of_all, R, depth),
        **exchange(cut, 1, R),
        right=int8_gpu.tile(slots_of_all, depth, width),
        staged=stream.tile(R, width, width=width, dtype=jnp.float32),
    )
    out = jax.ShapeDtypeStruct((outs, R, D), jnp.float32)
    program = functools.partial(_down_program, cut, each_slot=splits is None)
    kernel = launch(program, [out], scratch, (outs, D // width), warpgroups)
    (result,) = kernel(_DownInputs(slots.count, down, slots.experts, hidden_SRF, layer))
    return result


class _Share(NamedTuple):
    """What of the outward products is a warpgroup's: `slots` of them, `every`-th from the `first` on, and of each
    `steps` of the sum, from the `begin`-th on.
    """

    slots: jax.Array
    first: jax.Array
    every: int
    steps: int
    begin: jax.Array

    def place(self, step):
        """(slot, number of the block) of one of its steps."""
        slot = self.first + lax.div(step, jnp.int32(self.steps)) * self.every
        return slot, self.begin + lax.rem(step, jnp.int32(self.steps))


def _share(inputs: _DownInputs, cut: Cut, splits: int | None) -> _Share:
    """Of a slot alone a part of the sum; of several slots every so many-th."""
    warpgroups, depth = cut.warpgroups, cut.depth
    (S, _, F), E, x = inputs.hidden.shape, inputs.down.values.shape[1], lax.axis_index("x")
    warpgroup = lax.axis_index("warpgroup")
    if splits is None:
        steps = F // depth // warpgroups
        return _Share(jnp.where(inputs.experts[x, 0] < E, jnp.int32(1), jnp.int32(0)), x, 1, steps, warpgroup * steps)
    all_or_none = jnp.where(inputs.experts[0, 0] < E, jnp.int32(S), jnp.int32(0))
    count = all_or_none if inputs.count is None else inputs.count[0]
    steps = F // splits // depth
    own = lax.div(count - warpgroup + (warpgroups - 1), jnp.int32(warpgroups))
    return _Share(own, warpgroup, warpgroups, steps, x * steps)


def _down_program(cut: Cut, inputs: _DownInputs, out, scratch: _DownScratch, *, each_slot: bool):
    _, depth, width, stages = cut
    x, column, layer = lax.axis_index("x"), lax.axis_index("y") * width, inputs.layer[0]
    warpgroup, rows, parts = lax.axis_index("warpgroup"), inputs.hidden.shape[1], width // COLUMNS
    share = _share(inputs, cut, None if each_slot else out.shape[0])
    ring, steps = Ring(warpgroup * stages, scratch.full, stages), share.slots * share.steps

    def fill(step, at):
        slot, number = share.place(step)
        deep, full, expert = pl.ds(number * depth, depth), scratch.full.at[at], inputs.experts[slot, 0]
        columns = pl.ds(column, width)
        plgpu.copy_gmem_to_smem(inputs.down.values.at[layer, expert, deep, columns], scratch.right.at[at], full)
        plgpu.copy_gmem_to_smem(inputs.hidden.at[slot, :, deep], scratch.left.at[at], full)

    def one(index, totals):
        expert = inputs.experts[share.first + index * share.every, 0]
        places = [pl.ds(column + part * COLUMNS, COLUMNS) for part in range(parts)]
        scales = [across(inputs.down.scale.at[layer, expert, place], rows) for place in places]

        def add(step, products):
            def use(slot):
                blocks = [(scratch.right.at[slot], part) for part in range(parts)]
                return int8_gpu.add_products(products, blocks, scratch.left.at[slot])

            return ring.take(index * share.steps + step, steps, fill, use)

        products = lax.fori_loop(0, share.steps, add, [int8_gpu.zeros(rows)] * parts)
        added = zip(totals, products, scales, strict=True)
        return [total + int8_gpu.turned(product) * scale for total, product, scale in added]

    ring.begin(steps, fill)
    zeros = plgpu.layout_cast(jnp.zeros((rows, COLUMNS), jnp.float32), int8_gpu.TURNED)
    totals = lax.fori_loop(0, share.slots, one, [zeros] * parts)

    def store():
        sums = added_up(warpgroup, [totals], scratch.others, scratch.others_full)

        @pl.when(warpgroup == 0)
        def _():
            for part, value in enumerate(sums()[0]):
                scratch.staged.at[:, pl.ds(part * COLUMNS, COLUMNS)][...] = value
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(scratch.staged, out.at[x, :, pl.ds(column, width)])
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    if each_slot:
        pl.when(share.slots > 0)(store)
    else:
        store()
