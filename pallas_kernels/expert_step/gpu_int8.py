"""Experts of few rows on Hopper whose matrices are int8: as `gpu.py`, with half of the bytes read.

A block arrives as int8, is made bfloat16, exactly, in shared memory, and multiplied. Sums are scaled where they are
accumulated: once in the inward half, step by step in the outward one, which adds up several experts' products.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.expert_step.gpu_slots import Slots
from pallas_kernels.few_rows import ROWS
from pallas_kernels.int8 import Int8
from pallas_kernels.projection_step import gpu_stream as stream
from pallas_kernels.projection_step.gpu_stream import ROW, Blocks

BLOCKS = Blocks(width=64, stages=6)
COLUMN = plgpu.Layout.WGMMA.reduce(0)  # one value for each column of an accumulator


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
    staged: jax.Ref
    up: jax.Ref
    wide_gate: jax.Ref
    wide_up: jax.Ref


def _raw(*shape, width: int):
    transforms = (plgpu.TilingTransform((8, width)), plgpu.SwizzleTransform(width))
    return plgpu.SMEM(shape, jnp.int8, transforms=transforms)


def _widen(*pairs):
    """Each int8 block into its bfloat16 one, which the product before has left."""
    for raw, wide in pairs:
        wide[...] = plgpu.load(raw, layout=plgpu.Layout.WGMMA_UPCAST_2X, optimized=False).astype(jnp.bfloat16)
    plgpu.commit_smem()


@functools.partial(jax.jit, static_argnames=("count", "blocks"))
def up(x_XRD, gate: Int8, up: Int8, slots: Slots, layer, *, count: int, blocks: Blocks = BLOCKS):
    """hidden (S, R, F) = weight * silu(x G) * (x U); of slots without an expert nothing is written."""
    depth, width, stages = blocks
    S, R, F = count, x_XRD.shape[1], gate.values.shape[3]
    scratch = _UpScratch(
        full=plgpu.Barrier(num_arrivals=3, num_barriers=stages),
        gate=_raw(stages, depth, width, width=width),
        left=stream.tile(stages, ROWS, depth, width=width),
        staged=stream.tile(ROWS, width, width=width),
        up=_raw(stages, depth, width, width=width),
        wide_gate=stream.tile(depth, width, width=width),
        wide_up=stream.tile(depth, width, width=width),
    )
    out = jax.ShapeDtypeStruct((S, R, F), x_XRD.dtype)
    kernel = stream.launch(functools.partial(_up_program, blocks), [out], scratch, (S, F // width))
    (hidden,) = kernel(_UpInputs(slots.experts, gate, layer, up, slots.weight, x_XRD))
    return hidden


def _up_program(blocks: Blocks, inputs: _UpInputs, out, scratch: _UpScratch):
    depth, width, stages = blocks
    slot, column = lax.axis_index("x"), lax.axis_index("y") * width
    _, rows, D = inputs.x.shape
    expert, layer = inputs.experts[slot, 0], inputs.layer[0]

    @pl.when(expert < inputs.gate.values.shape[1])
    def _():
        columns, mine = pl.ds(column, width), slot if inputs.x.shape[0] > 1 else 0

        def fill(step, at):
            deep, full = pl.ds(step * depth, depth), scratch.full.at[at]
            plgpu.copy_gmem_to_smem(inputs.gate.values.at[layer, expert, deep, columns], scratch.gate.at[at], full)
            plgpu.copy_gmem_to_smem(inputs.up.values.at[layer, expert, deep, columns], scratch.up.at[at], full)
            plgpu.copy_gmem_to_smem(inputs.x.at[mine, :, deep], scratch.left.at[at, pl.ds(0, rows)], full)

        def operands(at):
            _widen((scratch.gate.at[at], scratch.wide_gate), (scratch.up.at[at], scratch.wide_up))
            return scratch.left.at[at], [scratch.wide_gate, scratch.wide_up]

        gate, up = stream.sums(2, width, D // depth, stages, scratch.full, fill, operands)
        own = pl.ds(slot * (ROWS if inputs.x.shape[0] == 1 else rows), ROWS)
        weight = plgpu.load(inputs.weight.at[own], layout=ROW, optimized=False)
        gate, up = (
            total * _across(matrix.scale.at[layer, expert, columns])
            for total, matrix in ((gate, inputs.gate), (up, inputs.up))
        )
        hidden = gate / (1.0 + jnp.exp(-gate)) * up * lax.broadcast_in_dim(weight, gate.shape, [0])
        stream.store(hidden, scratch.staged, out.at[slot, :, columns], rows)


def _across(scale):
    """A scale for each column of a sum."""
    return lax.broadcast_in_dim(plgpu.load(scale, layout=COLUMN, optimized=False), (ROWS, *scale.shape), [1])


class _DownInputs(NamedTuple):
    count: jax.Ref | None  # int32 (1,)
    down: Int8  # (L, E, F, D)
    experts: jax.Ref
    hidden: jax.Ref  # bfloat16 (S, R, F)
    layer: jax.Ref  # int32 (1,)


class _DownScratch(NamedTuple):
    full: jax.Ref
    left: jax.Ref
    right: jax.Ref
    scale: jax.Ref
    staged: jax.Ref
    wide: jax.Ref


@functools.partial(jax.jit, static_argnames=("splits", "blocks"))
def down(hidden_SRF, down: Int8, slots: Slots, layer, *, splits: int, blocks: Blocks = BLOCKS):
    """float32 (splits, R, D): hidden W_down summed over the slots, a part of F in each split."""
    while splits > 1 and hidden_SRF.shape[2] % (splits * blocks.depth):
        splits //= 2
    return _down(hidden_SRF, down, slots, layer, (splits, blocks))


@functools.partial(jax.jit, static_argnames="blocks")
def down_each(hidden_SRF, down: Int8, slots: Slots, layer, *, blocks: Blocks = BLOCKS):
    """(S, R, D) float32: hidden W_down of each slot; of slots without an expert nothing is written."""
    return _down(hidden_SRF, down, slots, layer, (None, blocks))


def _down(hidden_SRF, down: Int8, slots: Slots, layer, plan: tuple[int | None, Blocks]):
    """plan: splits, None where each slot has a result of its own; blocks."""
    S, R, _ = hidden_SRF.shape
    splits, (depth, width, stages) = plan
    D, outs = down.values.shape[3], splits or S
    scratch = _DownScratch(
        full=plgpu.Barrier(num_arrivals=3, num_barriers=stages),
        left=stream.tile(stages, ROWS, depth, width=width),
        right=_raw(stages, depth, width, width=width),
        scale=plgpu.SMEM((stages, width), jnp.float32),
        staged=stream.tile(ROWS, width, width=width, dtype=jnp.float32),
        wide=stream.tile(depth, width, width=width),
    )
    out = jax.ShapeDtypeStruct((outs, R, D), jnp.float32)
    program = functools.partial(_down_program, plan[1], each_slot=splits is None)
    kernel = stream.launch(program, [out], scratch, (outs, D // width))
    (result,) = kernel(_DownInputs(slots.count, down, slots.experts, hidden_SRF, layer))
    return result


def _down_program(blocks: Blocks, inputs: _DownInputs, out, scratch: _DownScratch, *, each_slot: bool):
    depth, width, stages = blocks
    (S, rows, F), E = inputs.hidden.shape, inputs.down.values.shape[1]
    x, columns, layer = lax.axis_index("x"), pl.ds(lax.axis_index("y") * width, width), inputs.layer[0]
    each = F // depth if each_slot else F // out.shape[0] // depth  # steps of a slot
    if each_slot:
        count = jnp.where(inputs.experts[x, 0] < E, jnp.int32(1), jnp.int32(0))
    elif inputs.count is None:
        count = jnp.where(inputs.experts[0, 0] < E, jnp.int32(S), jnp.int32(0))
    else:
        count = inputs.count[0]

    def fill(step, at):
        slot = x if each_slot else lax.div(step, jnp.int32(each))
        number = step if each_slot else x * each + lax.rem(step, jnp.int32(each))
        deep, full, expert = pl.ds(number * depth, depth), scratch.full.at[at], inputs.experts[slot, 0]
        plgpu.copy_gmem_to_smem(inputs.down.values.at[layer, expert, deep, columns], scratch.right.at[at], full)
        plgpu.copy_gmem_to_smem(inputs.hidden.at[slot, :, deep], scratch.left.at[at, pl.ds(0, rows)], full)
        plgpu.copy_gmem_to_smem(inputs.down.scale.at[layer, expert, columns], scratch.scale.at[at], full)

    for step in range(stages):
        pl.when(step < count * each)(lambda step=step: fill(jnp.int32(step), step))

    def one(step, total):
        at = lax.rem(step, jnp.int32(stages))
        plgpu.barrier_wait(scratch.full.at[at])
        _widen((scratch.right.at[at], scratch.wide))
        product = _product(scratch.left.at[at], scratch.wide, width)
        total = total + product * _across(scratch.scale.at[at])
        pl.when(step + stages < count * each)(lambda: fill(step + stages, at))
        return total

    zeros = plgpu.layout_cast(jnp.zeros((ROWS, width), jnp.float32), plgpu.Layout.WGMMA)
    total = lax.fori_loop(0, count * each, one, zeros)

    def store():
        stream.store(total, scratch.staged, out.at[x, :, columns], rows)

    if each_slot:
        pl.when(count > 0)(store)
    else:
        store()


def _product(left, right, width: int):
    def run(total):
        plgpu.wgmma(total, left, right)
        return total[...]

    return pl.run_scoped(run, plgpu.ACC((ROWS, width), jnp.float32))
