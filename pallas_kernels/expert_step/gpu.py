"""Experts of few rows on Hopper: only the experts that some row has chosen are read, and each once.

A *slot* is an expert with some rows (`gpu_slots.py`). Of few rows every slot has all, weighted by 0 where they chose
another; of many each slot has up to GATHERED of those that chose it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import dispatch
from pallas_kernels.expert_step import gpu_int8, gpu_slots
from pallas_kernels.expert_step.gpu_slots import GATHERED, Slots
from pallas_kernels.few_rows import ROWS, Placed, filled_up
from pallas_kernels.int8 import Int8, shape_of
from pallas_kernels.projection_step import gpu_stream as stream
from pallas_kernels.projection_step.gpu_stream import ROW, Blocks

MOST_SHARED = 32  # rows that all slots have
MOST_ROWS = 256
SPLITS = 8
UP, UP_NARROW = Blocks(width=64, stages=3), Blocks(width=32, stages=8)
DOWN, DOWN_EACH = Blocks(width=64, stages=8), Blocks(width=128, stages=3)
PROGRAMS = 2 * 132  # of fewer the columns are narrower


def unsupported(x_RD, choice_AC, weight_AC, matrices, layer, rows) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del weight_AC, layer
    if reason := dispatch.why_not_hopper():
        return reason
    if x_RD.dtype != jnp.bfloat16:
        return f"it takes bfloat16, got {x_RD.dtype.name}"
    (R, D), (_, E, _, F) = x_RD.shape, shape_of(matrices[0])
    if filled_up(R) != R or D % stream.DEPTH or F % stream.DEPTH:
        return f"rows must be filled up, D and F multiples of {stream.DEPTH}, got R={R}, D={D}, F={F}"
    if rows > MOST_ROWS or E > gpu_slots.MOST_EXPERTS:
        return f"it takes up to {MOST_ROWS} rows and {gpu_slots.MOST_EXPERTS} experts, got {rows}, {E}"
    if rows > MOST_SHARED and choice_AC.size > gpu_slots.MOST_CHOICES:
        return f"it takes up to {gpu_slots.MOST_CHOICES} choices, got {choice_AC.size}"
    return None


def forward(x_RD, choice_AC, weight_AC, matrices, layer, rows: int):
    """Contract in the package's docstring."""
    gate, up_, down_ = matrices
    (up, down, down_each), splits = _KINDS[isinstance(gate, Int8)]
    A, E = choice_AC.shape[0], shape_of(gate)[1]
    if rows <= MOST_SHARED:
        slots = Slots(choice_AC, weight_AC.reshape(-1), None)
        if rows > 1:
            slots = gpu_slots.shared(choice_AC, weight_AC, rows=rows, experts=E)
        hidden = up(x_RD[None], gate, up_, slots, layer, count=min(E, A * rows))
        return down(hidden, down_, slots, layer, splits=splits)
    S = E + A * rows // GATHERED
    slots, row_P, place_AC = gpu_slots.gathered(choice_AC, weight_AC, rows=rows, experts=E)
    own = x_RD[row_P[: S * GATHERED].reshape(S, GATHERED)]
    hidden = up(own, gate, up_, slots, layer, count=S)
    out = down_each(hidden, down_, slots, layer)
    return Placed(out.reshape(S * GATHERED, -1), place_AC)


class _UpInputs(NamedTuple):
    experts: jax.Ref  # int32 (at least S, ...), of slot s at [s, 0]
    gate: jax.Ref  # bfloat16 (L, E, D, F)
    layer: jax.Ref  # int32 (1,)
    up: jax.Ref  # bfloat16 (L, E, D, F)
    weight: jax.Ref  # float32, of each slot one after the other
    x: jax.Ref  # bfloat16 (1 or S, R, D)


class _UpScratch(NamedTuple):
    full: jax.Ref
    gate: jax.Ref
    left: jax.Ref
    staged: jax.Ref
    up: jax.Ref


@functools.partial(jax.jit, static_argnames=("count", "blocks"))
def up(x_XRD, gate, up, slots: Slots, layer, *, count: int, blocks: Blocks | None = None):
    """hidden (S, R, F) = weight * silu(x G) * (x U); of slots without an expert nothing is written."""
    if blocks is None:
        blocks = UP if count * gate.shape[3] // UP.width >= PROGRAMS else UP_NARROW
    depth, width, stages = blocks
    S, R, F = count, x_XRD.shape[1], gate.shape[3]
    scratch = _UpScratch(
        full=plgpu.Barrier(num_arrivals=3, num_barriers=stages),
        gate=stream.tile(stages, depth, width, width=width),
        left=stream.tile(stages, ROWS, depth, width=width),
        staged=stream.tile(ROWS, width, width=width),
        up=stream.tile(stages, depth, width, width=width),
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

    @pl.when(expert < inputs.gate.shape[1])
    def _():
        columns, mine = pl.ds(column, width), slot if inputs.x.shape[0] > 1 else 0

        def fill(step, at):
            deep, full = pl.ds(step * depth, depth), scratch.full.at[at]
            plgpu.copy_gmem_to_smem(inputs.gate.at[layer, expert, deep, columns], scratch.gate.at[at], full)
            plgpu.copy_gmem_to_smem(inputs.up.at[layer, expert, deep, columns], scratch.up.at[at], full)
            plgpu.copy_gmem_to_smem(inputs.x.at[mine, :, deep], scratch.left.at[at, pl.ds(0, rows)], full)

        def operands(at):
            return [(scratch.left.at[at], right.at[at]) for right in (scratch.gate, scratch.up)]

        gate, up = stream.sums(2, width, D // depth, stages, scratch.full, fill, operands)
        own = pl.ds(slot * (ROWS if inputs.x.shape[0] == 1 else rows), ROWS)
        weight = plgpu.load(inputs.weight.at[own], layout=ROW, optimized=False)
        hidden = gate / (1.0 + jnp.exp(-gate)) * up * lax.broadcast_in_dim(weight, gate.shape, [0])
        stream.store(hidden, scratch.staged, out.at[slot, :, columns], rows)


class _DownInputs(NamedTuple):
    count: jax.Ref | None  # int32 (1,)
    down: jax.Ref  # bfloat16 (L, E, F, D)
    experts: jax.Ref
    hidden: jax.Ref  # bfloat16 (S, R, F)
    layer: jax.Ref  # int32 (1,)


class _DownScratch(NamedTuple):
    full: jax.Ref
    left: jax.Ref
    right: jax.Ref
    staged: jax.Ref


@functools.partial(jax.jit, static_argnames=("blocks", "splits"))
def down(hidden_SRF, down, slots: Slots, layer, *, splits: int, blocks: Blocks = DOWN):
    """float32 (splits, R, D): hidden W_down summed over the slots, a part of F in each split."""
    F = hidden_SRF.shape[2]
    while splits > 1 and F % (splits * blocks.depth):
        splits //= 2
    return _down(_down_program, splits, _DownInputs(slots.count, down, slots.experts, hidden_SRF, layer), blocks)


@functools.partial(jax.jit, static_argnames="blocks")
def down_each(hidden_SRF, down, slots: Slots, layer, *, blocks: Blocks = DOWN_EACH):
    """(S, R, D) float32: hidden W_down of each slot; of slots without an expert nothing is written."""
    inputs = _DownInputs(slots.count, down, slots.experts, hidden_SRF, layer)
    if down.shape[3] % blocks.width:
        blocks = blocks._replace(width=stream.DEPTH)
    return _down(_down_each_program, hidden_SRF.shape[0], inputs, blocks)


def _down(program, outs: int, inputs: _DownInputs, blocks: Blocks):
    depth, width, stages = blocks
    R, D = inputs.hidden.shape[1], inputs.down.shape[3]
    scratch = _DownScratch(
        full=plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        left=stream.tile(stages, ROWS, depth, width=width),
        right=stream.tile(stages, depth, width, width=width),
        staged=stream.tile(ROWS, width, width=width, dtype=jnp.float32),
    )
    out = jax.ShapeDtypeStruct((outs, R, D), jnp.float32)
    kernel = stream.launch(functools.partial(program, blocks), [out], scratch, (outs, D // width))
    (result,) = kernel(inputs)
    return result


def _down_program(blocks: Blocks, inputs: _DownInputs, out, scratch: _DownScratch):
    F, E = inputs.hidden.shape[2], inputs.down.shape[1]
    each = F // out.shape[0] // blocks.depth  # steps of a slot
    first = lax.axis_index("x") * each
    if inputs.count is None:
        count = jnp.where(inputs.experts[0, 0] < E, jnp.int32(inputs.hidden.shape[0]), jnp.int32(0))
    else:
        count = inputs.count[0]

    def place(step):
        return lax.div(step, jnp.int32(each)), first + lax.rem(step, jnp.int32(each))

    _sum_down(blocks, inputs, out, scratch, count * each, place)


def _down_each_program(blocks: Blocks, inputs: _DownInputs, out, scratch: _DownScratch):
    slot, (_, _, F) = lax.axis_index("x"), inputs.hidden.shape

    @pl.when(inputs.experts[slot, 0] < inputs.down.shape[1])
    def _():
        _sum_down(blocks, inputs, out, scratch, jnp.int32(F // blocks.depth), lambda step: (slot, step))


def _sum_down(blocks: Blocks, inputs: _DownInputs, out, scratch: _DownScratch, steps, place):
    """A column block of the products of `steps` blocks of hidden, block place(step) = (slot, which)."""
    depth, width, stages = blocks
    columns, rows, layer = pl.ds(lax.axis_index("y") * width, width), inputs.hidden.shape[1], inputs.layer[0]

    def fill(step, at):
        slot, number = place(step)
        deep, full, expert = pl.ds(number * depth, depth), scratch.full.at[at], inputs.experts[slot, 0]
        plgpu.copy_gmem_to_smem(inputs.down.at[layer, expert, deep, columns], scratch.right.at[at], full)
        plgpu.copy_gmem_to_smem(inputs.hidden.at[slot, :, deep], scratch.left.at[at, pl.ds(0, rows)], full)

    def operands(at):
        return [(scratch.left.at[at], scratch.right.at[at])]

    (total,) = stream.sums(1, width, steps, stages, scratch.full, fill, operands)
    stream.store(total, scratch.staged, out.at[lax.axis_index("x"), :, columns], rows)


# Whether matrices are int8 -> (up, down, down_each), splits of down.
_KINDS = {
    False: ((up, down, down_each), SPLITS),
    True: ((gpu_int8.up, gpu_int8.down, gpu_int8.down_each), gpu_int8.SPLITS),
}
