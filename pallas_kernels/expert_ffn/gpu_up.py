"""The inward half of an expert on Hopper: both products, SwiGLU and the row's weight in one kernel.

    hidden = weight * silu(x G) * (x U)

An item is TILE rows of one expert by WIDTH columns of gate and as many of up: the columns of both meet in registers.
Where a gradient will be asked for, the two products leave as well.
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
from pallas_kernels.grouped_matmul.gpu_tiles import DEPTH, HALF, STAGES, TILE
from pallas_kernels.varying import vary_alike

WIDTH = 128  # columns of each of the two products: together those of a grouped product's item
ROW = plgpu.Layout.WGMMA.reduce(1)  # one value for each row of an accumulator


class _Plan(NamedTuple):
    """What is fixed when the kernel is compiled. Items beside each other follow each other."""

    items: int
    across: int  # items beside each other, F / WIDTH
    keeps: bool  # the two products are written out


class _Inputs(NamedTuple):
    """What the programs read."""

    experts: jax.Ref  # int32 (R / TILE,), the expert of each tile of rows
    gate: jax.Ref  # bfloat16 (E, D, F)
    up: jax.Ref  # bfloat16 (E, D, F)
    weight: jax.Ref | None  # float32 (R,)
    x: jax.Ref  # bfloat16 (R, D)


class _Scratch(NamedTuple):
    """A program's shared memory, in the order it lies there."""

    free: jax.Ref  # barriers (STAGES,): both computing warpgroups have left the slot
    full: jax.Ref  # barriers (STAGES,): the slot's four copies, of `left` twice, of `gate` and of `up`, have arrived
    gate: jax.Ref  # bfloat16 (STAGES, DEPTH, WIDTH)
    left: jax.Ref  # bfloat16 (STAGES, 2, HALF, DEPTH): rows, of each computing warpgroup
    staged: jax.Ref  # bfloat16 (2, 2, HALF, WIDTH): what each computing warpgroup writes out, two at a time
    up: jax.Ref  # bfloat16 (STAGES, DEPTH, WIDTH)


@functools.partial(jax.jit, static_argnames="keeps")  # lowered once for all layers
def gated(x_RD, gate_EDF, up_EDF, weight_R, experts, *, keeps: bool):
    """(hidden,) or (hidden, x G, x U), (R, F) each in bfloat16; of rows of expert E, which is none, all are 0.

    Args:
      weight_R: float32 (R,), or None for 1. experts: int32 (R / TILE,), as `gpu_rows.multiply` takes them.
    """
    R, F = x_RD.shape[0], gate_EDF.shape[2]
    plan = _Plan(items=R // TILE * (F // WIDTH), across=F // WIDTH, keeps=keeps)
    scratch = _Scratch(
        free=plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
        full=plgpu.Barrier(num_arrivals=4, num_barriers=STAGES),
        gate=gpu_tiles.tile(STAGES, DEPTH, WIDTH),
        left=gpu_tiles.tile(STAGES, 2, HALF, DEPTH),
        staged=gpu_tiles.tile(2, 2, HALF, WIDTH),
        up=gpu_tiles.tile(STAGES, DEPTH, WIDTH),
    )
    out = jax.ShapeDtypeStruct((R, F), x_RD.dtype, manual_axis_type=jax.typeof(x_RD).mat)
    kernel = gpu_tiles.launch(functools.partial(_program, plan), [out] * (3 if keeps else 1), scratch, plan.items)
    inputs = _Inputs(experts=experts, gate=gate_EDF, up=up_EDF, weight=weight_R, x=x_RD)
    with declared.flops(2 * 2 * R * x_RD.shape[1] * F, R):
        outs = kernel(inputs)
    return vary_alike(x_RD, *outs)[1:]


def _program(plan: _Plan, inputs: _Inputs, *rest):
    *outs, scratch = rest

    def place(index):
        """(first row, first column, expert); neighbours in time have the same rows."""
        tile, column = lax.div(index, jnp.int32(plan.across)), lax.rem(index, jnp.int32(plan.across))
        # Under `shard_map` a load has the array's varying axes in its type; arithmetic in a kernel does not keep them.
        return tile * TILE, column * WIDTH, inputs.experts[tile] + jnp.int32(0)

    def steps_of(index):
        _, _, expert = place(index)
        return jnp.where(expert < inputs.gate.shape[0], jnp.int32(inputs.x.shape[1] // DEPTH), jnp.int32(0))

    def load(index, done, steps):
        row, column, expert = place(index)

        def fill(step, slot):
            full, depth, columns = scratch.full.at[slot], pl.ds(step * DEPTH, DEPTH), pl.ds(column, WIDTH)
            for half in range(2):
                rows = inputs.x.at[pl.ds(row + half * HALF, HALF), depth]
                plgpu.copy_gmem_to_smem(rows, scratch.left.at[slot, half], full)
            plgpu.copy_gmem_to_smem(inputs.gate.at[expert, depth, columns], scratch.gate.at[slot], full)
            plgpu.copy_gmem_to_smem(inputs.up.at[expert, depth, columns], scratch.up.at[slot], full)

        gpu_tiles.stream(done, steps, scratch.free, fill)

    def compute(warpgroup, index, done, steps):
        row, column, _ = place(index)
        rows, columns = pl.ds(row + warpgroup * HALF, HALF), pl.ds(column, WIDTH)
        gate, up = _products(warpgroup, done, steps, scratch)
        hidden = gate / (1.0 + jnp.exp(-gate)) * up
        if inputs.weight is not None:
            weight = plgpu.load(inputs.weight.at[rows], layout=ROW, optimized=False)
            hidden = hidden * lax.broadcast_in_dim(weight, hidden.shape, [0])
        staged = scratch.staged.at[warpgroup]
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the item before leaves from `staged`
        for number, (value, out) in enumerate(zip((gate, up, hidden)[-len(outs) :], outs[1:] + outs[:1], strict=True)):
            if number == 2:
                plgpu.wait_smem_to_gmem(1, wait_read_only=True)
            place_of = staged.at[number % 2]
            place_of[...] = value.astype(out.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(place_of, out.at[rows, columns])

    gpu_tiles.each_item(plan.items, steps_of, compute, load)


def _products(warpgroup, done, steps, scratch: _Scratch):
    """float32 (HALF, WIDTH) each, the sums of the two products over an item's steps."""

    def leave(step):
        plgpu.barrier_arrive(scratch.free.at[gpu_tiles.slot_of(done + step)])

    def run(gate, up):
        @pl.loop(0, steps)
        def _(step):
            slot = gpu_tiles.slot_of(done + step)
            plgpu.barrier_wait(scratch.full.at[slot])
            left = scratch.left.at[slot, warpgroup]
            plgpu.wgmma(gate, left, scratch.gate.at[slot])
            plgpu.wgmma(up, left, scratch.up.at[slot])
            plgpu.wgmma_wait(2)  # the products before are done
            pl.when(step > 0)(lambda: leave(step - 1))

        return gate[...], up[...]

    products = pl.run_scoped(run, *[plgpu.ACC((HALF, WIDTH), jnp.float32)] * 2)
    pl.when(steps > 0)(lambda: leave(steps - 1))
    return products
