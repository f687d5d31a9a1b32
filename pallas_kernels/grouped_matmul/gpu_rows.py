"""Rows times their expert's matrix on Hopper: an item is TILE rows of one expert by some columns of its matrix.

With several pairs of rows and matrices their products are summed where they are accumulated.
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
    """What is fixed when the kernel is compiled. Items beside each other follow each other."""

    items: int
    across: int  # items beside each other, F / width
    width: int  # columns of an item
    transposed: bool  # the weights are (E, F, D)
    silu: bool  # of the sum, before it is rounded


class _Inputs(NamedTuple):
    """What the programs read."""

    experts: jax.Ref  # int32 (R / TILE,), the expert of each tile of rows
    weights: list[jax.Ref]  # bfloat16 (E, D, F), or (E, F, D), of each pair
    x: list[jax.Ref]  # bfloat16 (R, D), of each pair


def multiply(x_RD: jax.Array, weights: jax.Array, experts: jax.Array, *, transposed: bool) -> jax.Array:
    """out (R, F): x[r] @ w[e], weights (E, D, F); or x[r] @ w[e]', weights (E, F, D).

    experts: int32 (R / TILE,), whose matrix each tile meets; of expert E, which is none, the result is 0.
    """
    return multiply_sum([(x_RD, weights)], experts, transposed=transposed)


@functools.partial(jax.jit, static_argnames=("transposed", "silu"))  # lowered once for all layers and both directions
def multiply_sum(
    pairs: list[tuple[jax.Array, jax.Array]], experts: jax.Array, *, transposed: bool, silu: bool = False
) -> jax.Array:
    """The same summed over pairs (x, weights) of equal shapes, or its SiLU, accumulated in float32 and rounded once."""
    x_RD, weights = pairs[0]
    R, F = x_RD.shape[0], weights.shape[1 if transposed else 2]
    width = gpu_tiles.width_of(F)
    plan = _Plan(items=R // TILE * (F // width), across=F // width, width=width, transposed=transposed, silu=silu)
    kernel = gpu_tiles.kernel(
        functools.partial(_program, plan),
        jax.ShapeDtypeStruct((R, F), x_RD.dtype, manual_axis_type=jax.typeof(x_RD).mat),
        left=(HALF, DEPTH),
        right=(width, DEPTH) if transposed else (DEPTH, width),
        width=width,
        items=plan.items,
    )
    inputs = _Inputs(experts, weights=[w for _, w in pairs], x=[x for x, _ in pairs])
    with declared.flops(2 * R * x_RD.shape[1] * F * len(pairs), R):
        (out,) = kernel(inputs)
    return vary_alike(x_RD, out)[1]


def _program(plan: _Plan, inputs: _Inputs, out_gmem, scratch: gpu_tiles.Scratch):
    width, depth_steps = plan.width, inputs.x[0].shape[1] // DEPTH

    def place(index):
        """(first row, first column, expert); neighbours in time have the same rows."""
        tile, column = lax.div(index, jnp.int32(plan.across)), lax.rem(index, jnp.int32(plan.across))
        # Under `shard_map` a load has the array's varying axes in its type; arithmetic in a kernel does not keep them.
        return tile * TILE, column * width, inputs.experts[tile] + jnp.int32(0)

    def steps_of(index):
        _, _, expert = place(index)
        steps = jnp.int32(depth_steps * len(inputs.x))
        return jnp.where(expert < inputs.weights[0].shape[0], steps, jnp.int32(0))

    def load(index, done, steps):
        row, column, expert = place(index)

        def fill_from(pair, step, slot):
            full, depth, columns = scratch.full.at[slot], pl.ds(step * DEPTH, DEPTH), pl.ds(column, width)
            for half in range(2):
                rows = inputs.x[pair].at[pl.ds(row + half * HALF, HALF), depth]
                plgpu.copy_gmem_to_smem(rows, scratch.left.at[slot, half], full)
            block = (expert, columns, depth) if plan.transposed else (expert, depth, columns)
            plgpu.copy_gmem_to_smem(inputs.weights[pair].at[block], scratch.right.at[slot], full)

        def fill(step, slot):
            for pair in range(len(inputs.x)):
                first = pair * depth_steps
                is_of_pair = (step >= first) & (step < first + depth_steps)
                pl.when(is_of_pair)(functools.partial(fill_from, pair, step - first, slot))

        alone = functools.partial(fill_from, 0)
        gpu_tiles.stream(done, steps, scratch.free, alone if len(inputs.x) == 1 else fill)

    def compute(warpgroup, index, done, steps):
        row, column, _ = place(index)

        def operands(slot):
            right = scratch.right.at[slot]
            return scratch.left.at[slot, warpgroup], right.transpose((1, 0)) if plan.transposed else right

        total = gpu_tiles.accumulate(done, steps, scratch, operands)
        if plan.silu:
            total = _silu(total)
        out = out_gmem.at[pl.ds(row + warpgroup * HALF, HALF), pl.ds(column, width)]
        gpu_tiles.store(total, scratch.staged.at[warpgroup], out)

    gpu_tiles.each_item(plan.items, steps_of, compute, load)


def _silu(x):
    half = 0.5 * x  # one special function, where exp and a quotient are two: 2.55 ms beside 2.84, as far from float64
    return half + half * jnp.tanh(half)
