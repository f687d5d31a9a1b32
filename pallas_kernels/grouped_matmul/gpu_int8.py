"""Rows times their expert's int8 matrix on Hopper: out = (x Q) * scale, scaled where the products are accumulated.

As `gpu_rows.py`, but turned: a computing warpgroup has columns of the matrix down, which it widens in registers beside
the other one's products (`int8_gpu`), and all rows of the item beside each other. So memory gives half of the bytes,
shared memory too, and the matrix unit has bfloat16 on both sides.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import declared, int8_gpu
from pallas_kernels.grouped_matmul import gpu_tiles
from pallas_kernels.grouped_matmul.gpu_tiles import DEPTH, TILE
from pallas_kernels.int8 import Int8
from pallas_kernels.int8_gpu import COLUMN, COLUMNS, OWN, ROW
from pallas_kernels.varying import vary_alike

STAGES = 4
BLOCK = 2 * COLUMNS  # columns that lie together, half of them a warpgroup's


class _Plan(NamedTuple):
    """What is fixed when the kernel is compiled. Items beside each other follow each other."""

    items: int
    across: int  # items beside each other
    gated: bool  # the blocks are of gate and of up, not beside each other in one matrix


class _Inputs(NamedTuple):
    """What the programs read."""

    experts: jax.Ref  # int32 (R / TILE,), the expert of each tile of rows
    matrices: tuple[Int8, ...]  # (E, D, F): gate and up, or one
    weight: jax.Ref | None  # float32 (R,)
    x: jax.Ref  # bfloat16 (R, D)


class _Scratch(NamedTuple):
    """A program's shared memory, in the order it lies there."""

    blocks: list[jax.Ref]  # int8 (STAGES, DEPTH, BLOCK) each
    free: jax.Ref  # barriers (STAGES,): both computing warpgroups have left the slot
    full: jax.Ref  # barriers (STAGES,): the slot's copies, of `rows` and of each block, have arrived
    rows: jax.Ref  # bfloat16 (STAGES, TILE, DEPTH)
    staged: jax.Ref  # bfloat16 (2, outs, TILE, COLUMNS): what each computing warpgroup writes out


@jax.jit  # lowered once for all layers
def multiply(x_RD: jax.Array, weights: Int8, experts: jax.Array) -> jax.Array:
    """out (R, F): x[r] @ values[e] * scale[e]; of expert E, which is none, 0.

    Args:
      weights: (E, D, F). experts: int32 (R / TILE,), as `gpu_rows.multiply` takes them.
    """
    blocks = 2 if weights.values.shape[2] % (2 * BLOCK) == 0 else 1
    return _run(_Inputs(experts, (weights,), None, x_RD), blocks)


@jax.jit
def gated(x_RD, gate: Int8, up: Int8, weight_R, experts) -> jax.Array:
    """hidden (R, F) = weight * silu((x Qg) * sg) * ((x Qu) * su); arguments as of `expert_ffn.gpu_up.gated`."""
    return _run(_Inputs(experts, (gate, up), weight_R, x_RD), 2)


def _run(inputs: _Inputs, blocks: int):
    (R, D), F, gated = inputs.x.shape, inputs.matrices[0].values.shape[2], len(inputs.matrices) == 2
    across, outs = F // (BLOCK if gated else BLOCK * blocks), 1 if gated else blocks
    plan = _Plan(items=R // TILE * across, across=across, gated=gated)
    scratch = _Scratch(
        blocks=[int8_gpu.tile(STAGES, DEPTH, BLOCK)] * blocks,
        free=plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
        full=plgpu.Barrier(num_arrivals=1 + blocks, num_barriers=STAGES),
        rows=gpu_tiles.tile(STAGES, TILE, DEPTH),
        staged=gpu_tiles.tile(2, outs, TILE, COLUMNS),
    )
    out = jax.ShapeDtypeStruct((R, F), inputs.x.dtype, manual_axis_type=jax.typeof(inputs.x).mat)
    kernel = gpu_tiles.launch(functools.partial(_program, plan), [out], scratch, plan.items)
    with declared.flops(2 * len(inputs.matrices) * R * D * F, R):
        (out,) = kernel(inputs)
    return vary_alike(inputs.x, out)[1]


def _program(plan: _Plan, inputs: _Inputs, out_gmem, smem: _Scratch):
    E, blocks = inputs.matrices[0].values.shape[0], len(smem.blocks)
    width = BLOCK if plan.gated else BLOCK * blocks

    def place(index):
        """(first row, first column, expert); neighbours in time have the same rows."""
        tile, column = lax.div(index, jnp.int32(plan.across)), lax.rem(index, jnp.int32(plan.across))
        # Under `shard_map` a load has the array's varying axes in its type; arithmetic in a kernel does not keep them.
        return tile * TILE, column * width, inputs.experts[tile] + jnp.int32(0)

    def steps_of(index):
        _, _, expert = place(index)
        return jnp.where(expert < E, jnp.int32(inputs.x.shape[1] // DEPTH), jnp.int32(0))

    def block_of(number: int, column):
        """(the matrix, the first column) of a block of an item."""
        return (inputs.matrices[number], column) if plan.gated else (inputs.matrices[0], column + number * BLOCK)

    def load(index, done, steps):
        row, column, expert = place(index)

        def fill(step, slot):
            full, deep = smem.full.at[slot], pl.ds(step * DEPTH, DEPTH)
            plgpu.copy_gmem_to_smem(inputs.x.at[pl.ds(row, TILE), deep], smem.rows.at[slot], full)
            for number in range(blocks):
                matrix, first = block_of(number, column)
                part = matrix.values.at[expert, deep, pl.ds(first, BLOCK)]
                plgpu.copy_gmem_to_smem(part, smem.blocks[number].at[slot], full)

        gpu_tiles.stream(done, steps, smem.free, fill, STAGES)

    def compute(warpgroup, index, done, steps):
        row, column, expert = place(index)
        rows, expert = pl.ds(row, TILE), lax.min(expert, jnp.int32(E - 1))  # of none any scale does
        sums = []
        for number, total in enumerate(_accumulate(done, steps, smem)):
            matrix, first = block_of(number, column)
            scale = plgpu.load(
                matrix.scale.at[expert, pl.ds(first + warpgroup * COLUMNS, COLUMNS)], layout=COLUMN, optimized=False
            )
            sums.append(total * lax.broadcast_in_dim(scale, total.shape, [1]))
        if plan.gated:
            gate, up = sums
            hidden = gate / (1.0 + jnp.exp(-gate)) * up
            if inputs.weight is not None:
                weight = plgpu.load(inputs.weight.at[rows], layout=ROW, optimized=False)
                hidden = hidden * lax.broadcast_in_dim(weight, hidden.shape, [0])
            sums = [hidden]
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the item before leaves from `staged`
        for number, value in enumerate(sums):
            smem.staged.at[warpgroup, number][...] = value.astype(out_gmem.dtype)
        plgpu.commit_smem()
        for number in range(len(sums)):
            columns = pl.ds(column + number * BLOCK + warpgroup * COLUMNS, COLUMNS)
            plgpu.copy_smem_to_gmem(smem.staged.at[warpgroup, number], out_gmem.at[rows, columns])

    gpu_tiles.each_item(plan.items, steps_of, compute, load)


def _accumulate(done, steps, smem: _Scratch):
    """float32 (TILE, COLUMNS) each: the sums of this warpgroup's columns of each block over an item's steps."""

    def one(step, totals):
        slot = gpu_tiles.slot_of(done + step, STAGES)
        plgpu.barrier_wait(smem.full.at[slot])
        columns = [(block.at[slot], OWN) for block in smem.blocks]
        totals = int8_gpu.add_products(totals, columns, smem.rows.at[slot])
        plgpu.barrier_arrive(smem.free.at[slot])
        return totals

    totals = lax.fori_loop(0, steps, one, [int8_gpu.zeros(TILE)] * len(smem.blocks))
    return [int8_gpu.turned(total) for total in totals]
