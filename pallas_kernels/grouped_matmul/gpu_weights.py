"""The gradient of the experts' matrices on Hopper: dw[e] = sum over e's rows of x[r]' d[r].

An item is TILE rows of one expert's gradient by some of its columns; that expert's rows stream past, DEPTH at a time.
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
from pallas_kernels.varying import vary_alike


class _Plan(NamedTuple):
    """What is fixed when the kernel is compiled. Items are numbered by expert, then down, then across."""

    items: int
    down: int  # items of an expert one below the other, D / TILE
    across: int  # items beside each other, F / width
    width: int  # columns of an item


class _Inputs(NamedTuple):
    """What the programs read."""

    d: jax.Ref  # bfloat16 (R, F)
    end: jax.Ref  # int32 (E,), the row after each expert's last
    start: jax.Ref  # int32 (E,), each expert's first row
    x: jax.Ref  # bfloat16 (R, D)


@jax.jit  # lowered once for all layers and matrices of a shape
def outer(x_RD: jax.Array, d_RF: jax.Array, group_sizes_E: jax.Array) -> jax.Array:
    """(E, D, F) in x's dtype; groups are multiples of DEPTH."""
    (E,), D, F = group_sizes_E.shape, x_RD.shape[1], d_RF.shape[1]
    ends, width = jnp.cumsum(group_sizes_E, dtype=jnp.int32), gpu_tiles.width_of(F)
    down, across = D // TILE, F // width
    plan = _Plan(items=E * down * across, down=down, across=across, width=width)
    kernel = gpu_tiles.kernel(
        functools.partial(_program, plan),
        jax.ShapeDtypeStruct((E, D, F), x_RD.dtype, manual_axis_type=jax.typeof(x_RD).mat),
        left=(DEPTH, HALF),
        right=(DEPTH, width),
        width=width,
        items=plan.items,
    )
    inputs = _Inputs(d=d_RF, end=ends, start=ends - group_sizes_E, x=x_RD)
    with declared.flops(2 * x_RD.shape[0] * D * F, x_RD.shape[0]):
        (out,) = kernel(inputs)
    return vary_alike(x_RD, out)[1]


def _program(plan: _Plan, inputs: _Inputs, out_gmem, scratch: gpu_tiles.Scratch):
    width = plan.width

    def place(index):
        """(expert, first row, first column)."""
        rest, column = lax.div(index, jnp.int32(plan.across)), lax.rem(index, jnp.int32(plan.across))
        expert, row = lax.div(rest, jnp.int32(plan.down)), lax.rem(rest, jnp.int32(plan.down))
        return expert, row * TILE, column * width

    def of_expert(numbers_E, index):
        # Under `shard_map` a load has the array's varying axes in its type; arithmetic in a kernel does not keep them.
        return numbers_E[place(index)[0]] + jnp.int32(0)

    def steps_of(index):
        return lax.div(of_expert(inputs.end, index) - of_expert(inputs.start, index), jnp.int32(DEPTH))

    def load(index, done, steps):
        _, row, column = place(index)
        start = of_expert(inputs.start, index)

        def fill(step, slot):
            full, tokens = scratch.full.at[slot], pl.ds(pl.multiple_of(start + step * DEPTH, DEPTH), DEPTH)
            for half in range(2):
                x = inputs.x.at[tokens, pl.ds(row + half * HALF, HALF)]
                plgpu.copy_gmem_to_smem(x, scratch.left.at[slot, half], full)
            plgpu.copy_gmem_to_smem(inputs.d.at[tokens, pl.ds(column, width)], scratch.right.at[slot], full)

        gpu_tiles.stream(done, steps, scratch.free, fill)

    def compute(warpgroup, index, done, steps):
        expert, row, column = place(index)

        def operands(slot):
            return scratch.left.at[slot, warpgroup].transpose((1, 0)), scratch.right.at[slot]

        total = gpu_tiles.accumulate(done, steps, scratch, operands)
        out = out_gmem.at[expert, pl.ds(row + warpgroup * HALF, HALF), pl.ds(column, width)]
        gpu_tiles.store(total, scratch.staged.at[warpgroup], out)

    gpu_tiles.each_item(plan.items, steps_of, compute, load)
