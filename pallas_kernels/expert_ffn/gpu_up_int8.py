"""The inward half of an expert whose matrices are int8, on Hopper: both products, scales, SwiGLU, the row's weight.

    hidden = weight * silu((x Qg) * sg) * ((x Qu) * su)

As `gpu_up.py`, with the third warpgroup of `grouped_matmul/gpu_int8.py`, which also turns int8 blocks into bfloat16.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import declared
from pallas_kernels.expert_ffn.gpu_up import ROW, WIDTH
from pallas_kernels.grouped_matmul import gpu_int8, gpu_tiles
from pallas_kernels.grouped_matmul.gpu_int8 import LEFT, RAW, RIGHT
from pallas_kernels.grouped_matmul.gpu_tiles import DEPTH, HALF, TILE
from pallas_kernels.int8 import Int8
from pallas_kernels.varying import vary_alike


class _Inputs(NamedTuple):
    """What the programs read."""

    experts: jax.Ref  # int32 (R / TILE,), the expert of each tile of rows
    gate: jax.Ref  # int8 (E, D, F)
    gate_scale: jax.Ref  # float32 (E, F)
    up: jax.Ref
    up_scale: jax.Ref
    weight: jax.Ref | None  # float32 (R,)
    x: jax.Ref  # bfloat16 (R, D)


class _Scratch(NamedTuple):
    """A program's shared memory, in the order it lies there: as in `gpu_int8`, blocks of both matrices."""

    gate: jax.Ref  # bfloat16 (RIGHT, DEPTH, WIDTH)
    left: jax.Ref  # bfloat16 (LEFT, 2, HALF, DEPTH)
    left_free: jax.Ref
    left_full: jax.Ref
    raw_free: jax.Ref
    raw_full: jax.Ref
    raw_gate: jax.Ref  # int8 (RAW, DEPTH, WIDTH)
    raw_up: jax.Ref
    right_free: jax.Ref
    right_full: jax.Ref
    staged: jax.Ref  # bfloat16 (2, HALF, WIDTH)
    up: jax.Ref  # bfloat16 (RIGHT, DEPTH, WIDTH)


@jax.jit  # lowered once for all layers
def gated(x_RD, gate: Int8, up: Int8, weight_R, experts):
    """hidden (R, F) in bfloat16; of rows of expert E, which is none, 0. Arguments as of `gpu_up.gated`."""
    R, F = x_RD.shape[0], gate.values.shape[2]
    items, across = R // TILE * (F // WIDTH), F // WIDTH
    out = jax.ShapeDtypeStruct((R, F), x_RD.dtype, manual_axis_type=jax.typeof(x_RD).mat)
    kernel = gpu_tiles.launch(functools.partial(_program, items, across), [out], _scratch(), items)
    inputs = _Inputs(experts, gate.values, gate.scale, up.values, up.scale, weight_R, x_RD)
    with declared.flops(2 * 2 * R * x_RD.shape[1] * F):
        (out,) = kernel(inputs)
    return vary_alike(x_RD, out)[1]


def _scratch() -> _Scratch:
    return _Scratch(
        gate=gpu_tiles.tile(RIGHT, DEPTH, WIDTH),
        left=gpu_tiles.tile(LEFT, 2, HALF, DEPTH),
        left_free=plgpu.Barrier(num_arrivals=2, num_barriers=LEFT),
        left_full=plgpu.Barrier(num_arrivals=2, num_barriers=LEFT),
        raw_free=plgpu.Barrier(num_barriers=RAW),
        raw_full=plgpu.Barrier(num_arrivals=2, num_barriers=RAW),
        raw_gate=gpu_int8.raw_tile(RAW, DEPTH, WIDTH),
        raw_up=gpu_int8.raw_tile(RAW, DEPTH, WIDTH),
        right_free=plgpu.Barrier(num_arrivals=2, num_barriers=RIGHT),
        right_full=plgpu.Barrier(num_barriers=RIGHT),
        staged=gpu_tiles.tile(2, HALF, WIDTH),
        up=gpu_tiles.tile(RIGHT, DEPTH, WIDTH),
    )


def _program(items: int, across: int, inputs: _Inputs, out_gmem, smem: _Scratch):
    def place(index):
        """(first row, first column, expert); neighbours in time have the same rows."""
        tile, column = lax.div(index, jnp.int32(across)), lax.rem(index, jnp.int32(across))
        # Under `shard_map` a load has the array's varying axes in its type; arithmetic in a kernel does not keep them.
        return tile * TILE, column * WIDTH, inputs.experts[tile] + jnp.int32(0)

    def steps_of(index):
        _, _, expert = place(index)
        return jnp.where(expert < inputs.gate.shape[0], jnp.int32(inputs.x.shape[1] // DEPTH), jnp.int32(0))

    def feed(index, done, steps):
        row, column, expert = place(index)

        def block(depth):
            return (expert, depth, pl.ds(column, WIDTH))

        rings = (inputs.gate, smem.raw_gate, smem.gate), (inputs.up, smem.raw_up, smem.up)
        matrices = [(array, block, raw, wide) for array, raw, wide in rings]
        gpu_int8.feed_blocks(done, steps, smem, (inputs.x, row), matrices)

    def compute(warpgroup, index, done, steps):
        row, column, expert = place(index)
        rows, columns = pl.ds(row + warpgroup * HALF, HALF), pl.ds(column, WIDTH)
        gate, up = _products(warpgroup, done, steps, smem)
        gate = gate * gpu_int8.scale_of(inputs.gate_scale, expert, columns, gate)
        up = up * gpu_int8.scale_of(inputs.up_scale, expert, columns, up)
        hidden = gate / (1.0 + jnp.exp(-gate)) * up
        if inputs.weight is not None:
            weight = plgpu.load(inputs.weight.at[rows], layout=ROW, optimized=False)
            hidden = hidden * lax.broadcast_in_dim(weight, hidden.shape, [0])
        gpu_tiles.store(hidden, smem.staged.at[warpgroup], out_gmem.at[rows, columns])

    gpu_int8.each_item(items, steps_of, compute, feed)


def _products(warpgroup, done, steps, smem: _Scratch):
    """float32 (HALF, WIDTH) each, the sums of the two products over an item's steps."""

    def run(gate, up):
        @pl.loop(0, steps)
        def _(step):
            left, right = lax.rem(done + step, jnp.int32(LEFT)), lax.rem(done + step, jnp.int32(RIGHT))
            plgpu.barrier_wait(smem.left_full.at[left])
            plgpu.barrier_wait(smem.right_full.at[right])
            plgpu.wgmma(gate, smem.left.at[left, warpgroup], smem.gate.at[right])
            plgpu.wgmma(up, smem.left.at[left, warpgroup], smem.up.at[right])
            plgpu.wgmma_wait(2)  # the products before are done
            pl.when(step > 0)(lambda: gpu_int8.leave(smem, done + step - 1))

        return gate[...], up[...]

    products = pl.run_scoped(run, *[plgpu.ACC((HALF, WIDTH), jnp.float32)] * 2)
    pl.when(steps > 0)(lambda: gpu_int8.leave(smem, done + steps - 1))
    return products
