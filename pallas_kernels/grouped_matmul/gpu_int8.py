"""Rows times their expert's int8 matrix on Hopper: out = (x Q) * scale, scaled where the products are accumulated.

As `gpu_rows.py`, but the third warpgroup, which loads, also turns each int8 block that has arrived into bfloat16,
exactly, in a ring of its own, beside the products of the blocks before. So memory gives half of the bytes, and the
matrix unit has bfloat16 on both sides. (A fourth warpgroup for that would leave each thread 128 registers, and ptxas
wants 154 for a wgmma of 256 columns.)
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import declared
from pallas_kernels.grouped_matmul import gpu_tiles
from pallas_kernels.grouped_matmul.gpu_tiles import DEPTH, HALF, TILE
from pallas_kernels.int8 import Int8
from pallas_kernels.varying import vary_alike

COMPUTE_REGISTERS, FEEDER_REGISTERS = 208, 88  # a multiprocessor has 512 for the threads of one number
LEFT, RIGHT, RAW = 3, 2, 2  # slots of the rings: rows, bfloat16 blocks, int8 blocks
PART = 128  # columns converted at a time
COLUMN = plgpu.Layout.WGMMA.reduce(0)  # one value for each column of an accumulator


class _Plan(NamedTuple):
    """What is fixed when the kernel is compiled. Items beside each other follow each other."""

    items: int
    across: int  # items beside each other, F / width
    width: int  # columns of an item


class _Inputs(NamedTuple):
    """What the programs read."""

    experts: jax.Ref  # int32 (R / TILE,), the expert of each tile of rows
    scale: jax.Ref  # float32 (E, F)
    values: jax.Ref  # int8 (E, D, F)
    x: jax.Ref  # bfloat16 (R, D)


class _Scratch(NamedTuple):
    """A program's shared memory, in the order it lies there."""

    left: jax.Ref  # bfloat16 (LEFT, 2, HALF, DEPTH)
    left_free: jax.Ref
    left_full: jax.Ref
    raw: jax.Ref  # int8 (RAW, DEPTH, width)
    raw_free: jax.Ref
    raw_full: jax.Ref
    right: jax.Ref  # bfloat16 (RIGHT, DEPTH, width)
    right_free: jax.Ref
    right_full: jax.Ref
    staged: jax.Ref  # bfloat16 (2, HALF, width)


@jax.jit  # lowered once for all layers
def multiply(x_RD: jax.Array, weights: Int8, experts: jax.Array) -> jax.Array:
    """out (R, F): x[r] @ values[e] * scale[e]; of expert E, which is none, 0.

    Args:
      weights: (E, D, F). experts: int32 (R / TILE,), as `gpu_rows.multiply` takes them.
    """
    R, F = x_RD.shape[0], weights.values.shape[2]
    width = gpu_tiles.width_of(F)
    plan = _Plan(items=R // TILE * (F // width), across=F // width, width=width)
    out = jax.ShapeDtypeStruct((R, F), x_RD.dtype, manual_axis_type=jax.typeof(x_RD).mat)
    kernel = gpu_tiles.launch(functools.partial(_program, plan), [out], _scratch(width), plan.items)
    with declared.flops(2 * R * x_RD.shape[1] * F):
        (out,) = kernel(_Inputs(experts, weights.scale, weights.values, x_RD))
    return vary_alike(x_RD, out)[1]


def _scratch(width: int) -> _Scratch:
    return _Scratch(
        left=gpu_tiles.tile(LEFT, 2, HALF, DEPTH),
        left_free=plgpu.Barrier(num_arrivals=2, num_barriers=LEFT),
        left_full=plgpu.Barrier(num_arrivals=2, num_barriers=LEFT),
        raw=raw_tile(RAW, DEPTH, width),
        raw_free=plgpu.Barrier(num_barriers=RAW),
        raw_full=plgpu.Barrier(num_barriers=RAW),
        right=gpu_tiles.tile(RIGHT, DEPTH, width),
        right_free=plgpu.Barrier(num_arrivals=2, num_barriers=RIGHT),
        right_full=plgpu.Barrier(num_barriers=RIGHT),
        staged=gpu_tiles.tile(2, HALF, width),
    )


def _program(plan: _Plan, inputs: _Inputs, out_gmem, smem: _Scratch):
    width = plan.width

    def place(index):
        """(first row, first column, expert); neighbours in time have the same rows."""
        tile, column = lax.div(index, jnp.int32(plan.across)), lax.rem(index, jnp.int32(plan.across))
        return tile * TILE, column * width, inputs.experts[tile] + jnp.int32(0)

    def steps_of(index):
        _, _, expert = place(index)
        return jnp.where(expert < inputs.values.shape[0], jnp.int32(inputs.x.shape[1] // DEPTH), jnp.int32(0))

    def feed(index, done, steps):
        row, column, expert = place(index)

        def block(depth):
            return (expert, depth, pl.ds(column, width))

        feed_blocks(done, steps, smem, (inputs.x, row), [(inputs.values, block, smem.raw, smem.right)])

    def compute(warpgroup, index, done, steps):
        row, column, expert = place(index)
        columns = pl.ds(column, width)
        total = _accumulate(warpgroup, done, steps, smem)
        total = total * scale_of(inputs.scale, expert, columns, total)
        gpu_tiles.store(total, smem.staged.at[warpgroup], out_gmem.at[pl.ds(row + warpgroup * HALF, HALF), columns])

    each_item(plan.items, steps_of, compute, feed)


def raw_tile(*shape):
    transforms = (plgpu.TilingTransform((8, 128)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM(shape, jnp.int8, transforms=transforms)


def feed_blocks(done, steps, smem, rows, matrices):
    """The third warpgroup's item: step by step rows and int8 blocks are sent for, and blocks made bfloat16.

    rows: (x in memory, the first of them). matrices: of each the array in memory, block(depth) in it, its ring of int8
    and that of bfloat16. smem: has the barriers of `_Scratch`.
    """
    x, first = rows

    def start(step):
        left, raw = lax.rem(done + step, jnp.int32(LEFT)), lax.rem(done + step, jnp.int32(RAW))
        depth = pl.ds(step * DEPTH, DEPTH)
        pl.when(done + step >= LEFT)(lambda: plgpu.barrier_wait(smem.left_free.at[left]))
        for half in range(2):
            part = x.at[pl.ds(first + half * HALF, HALF), depth]
            plgpu.copy_gmem_to_smem(part, smem.left.at[left, half], smem.left_full.at[left])
        pl.when(done + step >= RAW)(lambda: plgpu.barrier_wait(smem.raw_free.at[raw]))
        for array, block, ring, _ in matrices:
            plgpu.copy_gmem_to_smem(array.at[block(depth)], ring.at[raw], smem.raw_full.at[raw])

    pl.when(steps > 0)(lambda: start(jnp.int32(0)))

    @pl.loop(0, steps)
    def _(step):
        # One step ahead: two would wait for rows that are left when this step's product has begun.
        pl.when(step + 1 < steps)(lambda: start(step + 1))
        raw, right = lax.rem(done + step, jnp.int32(RAW)), lax.rem(done + step, jnp.int32(RIGHT))
        plgpu.barrier_wait(smem.raw_full.at[raw])
        pl.when(done + step >= RIGHT)(lambda: plgpu.barrier_wait(smem.right_free.at[right]))
        for *_, source, target in matrices:
            for part in range(source.shape[2] // PART):
                columns = pl.ds(part * PART, PART)
                block = plgpu.load(source.at[raw, :, columns], layout=plgpu.Layout.WGMMA_UPCAST_2X, optimized=False)
                target.at[right, :, columns][...] = block.astype(jnp.bfloat16)
        plgpu.barrier_arrive(smem.raw_free.at[raw])
        plgpu.commit_smem()
        plgpu.barrier_arrive(smem.right_full.at[right])


def leave(smem, step):
    """A computing warpgroup has left the slots of a step (of all that the program has)."""
    plgpu.barrier_arrive(smem.left_free.at[lax.rem(step, jnp.int32(LEFT))])
    plgpu.barrier_arrive(smem.right_free.at[lax.rem(step, jnp.int32(RIGHT))])


def scale_of(scale, expert, columns, like):
    """A scale for each column of an accumulator, of its shape; any where the expert is none."""
    row = scale.at[lax.min(expert, jnp.int32(scale.shape[0] - 1)), columns]
    return lax.broadcast_in_dim(plgpu.load(row, layout=COLUMN, optimized=False), like.shape, [1])


def _accumulate(warpgroup, done, steps, smem: _Scratch):
    """float32 (HALF, width), the sum of products over an item's steps."""

    def run(total):
        @pl.loop(0, steps)
        def _(step):
            left, right = lax.rem(done + step, jnp.int32(LEFT)), lax.rem(done + step, jnp.int32(RIGHT))
            plgpu.barrier_wait(smem.left_full.at[left])
            plgpu.barrier_wait(smem.right_full.at[right])
            plgpu.wgmma(total, smem.left.at[left, warpgroup], smem.right.at[right])
            plgpu.wgmma_wait(1)  # the product before is done
            pl.when(step > 0)(lambda: leave(smem, done + step - 1))

        return total[...]

    total = pl.run_scoped(run, plgpu.ACC(smem.staged.shape[1:], jnp.float32))
    pl.when(steps > 0)(lambda: leave(smem, done + steps - 1))
    return total


def each_item(items: int, steps_of, compute, feed):
    """As `gpu_tiles.each_item`, with registers for a third warpgroup that converts."""
    gpu_tiles.each_item(items, steps_of, compute, feed, (COMPUTE_REGISTERS, FEEDER_REGISTERS))
