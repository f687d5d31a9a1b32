"""Few rows times the matrices of one layer on Hopper; every column block of every matrix is a program's."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import dispatch
from pallas_kernels.few_rows import ROWS, filled_up
from pallas_kernels.projection_step import gpu_stream as stream
from pallas_kernels.projection_step.gpu_stream import Blocks

NARROW = 32  # columns of a program, at least
PROGRAMS = 132  # wanted: one for each multiprocessor of an H100 or H200 SXM
STAGES = {128: 6, 64: 8, 32: 8}
TALL = 2  # tiles of rows that a program multiplies by what it reads, where there are as many
TALL_STAGES = {128: 4, 64: 6}  # narrower columns are so little of what is read that their rows are split instead


class _Inputs(NamedTuple):
    layer: jax.Ref  # int32 (1,)
    matrices: list[jax.Ref]  # bfloat16 (L, D, F), each of an F of its own
    x: jax.Ref  # bfloat16 (R, D)


class _Scratch(NamedTuple):
    full: jax.Ref
    left: jax.Ref
    right: jax.Ref
    staged: jax.Ref


def unsupported(x_RD, matrices, layer) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del layer
    if reason := dispatch.why_not_hopper():
        return reason
    if x_RD.dtype != jnp.bfloat16:
        return f"it takes bfloat16, got {x_RD.dtype.name}"
    R, D = x_RD.shape
    widths = [matrix.shape[2] for matrix in matrices]
    if filled_up(R) != R or D % stream.DEPTH or any(width % NARROW for width in widths):
        return f"rows must be filled up, D a multiple of {stream.DEPTH} and F of {NARROW}, got R={R}, D={D}, F={widths}"
    return None


def forward(x_RD, matrices, layer, dtype):
    """Contract in the package's docstring."""
    blocks, tall = _blocks([matrix.shape[2] for matrix in matrices]), 1
    if x_RD.shape[0] % (TALL * ROWS) == 0 and blocks.width in TALL_STAGES:
        blocks, tall = blocks._replace(stages=TALL_STAGES[blocks.width]), TALL
    return product(x_RD, matrices, layer, splits=1, dtype=dtype, blocks=blocks, tall=tall)[0]


def parts(x_RD, matrix_LDF, layer):
    """Contract in the package's docstring."""
    D, F = matrix_LDF.shape[1:]
    blocks, splits = _blocks([F]), 1
    while D % (2 * splits * blocks.depth) == 0 and 2 * splits * F // blocks.width <= PROGRAMS:
        splits *= 2
    return product(x_RD, [matrix_LDF], layer, splits=splits, dtype=jnp.float32, blocks=blocks)


def _blocks(widths: list[int]) -> Blocks:
    """As wide as leaves a program for most multiprocessors."""
    total = sum(widths)
    fits = [width for width in (128, 64, NARROW) if all(columns % width == 0 for columns in widths)]
    width = next((width for width in fits if total // width >= PROGRAMS * 3 // 4), fits[-1])
    return Blocks(width=width, stages=STAGES[width])


@functools.partial(jax.jit, static_argnames=("blocks", "splits", "dtype", "tall"))
def product(x_RD, matrices, layer, *, splits: int, dtype, blocks: Blocks, tall: int = 1):
    """(splits, R, sum of F): x times each matrix, side by side, a part of D in each split, of `tall` tiles of rows."""
    depth, width, stages = blocks
    R, lines = x_RD.shape[0], tall * ROWS
    F = sum(matrix.shape[2] for matrix in matrices)
    scratch = _Scratch(
        full=plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        left=stream.tile(stages, lines, depth, width=width),
        right=stream.tile(stages, depth, width, width=width),
        staged=stream.tile(ROWS, width, width=width, dtype=dtype),
    )
    out = jax.ShapeDtypeStruct((splits, R, F), dtype)
    tiles = -(-R // lines)
    kernel = stream.launch(functools.partial(_program, blocks), [out], scratch, (tiles, splits, F // width))
    (product,) = kernel(_Inputs(layer, list(matrices), x_RD))
    return product


def _program(blocks: Blocks, inputs: _Inputs, out, scratch: _Scratch):
    depth, width, stages = blocks
    split, column = lax.axis_index("y"), lax.axis_index("z") * width
    (R, D), lines = inputs.x.shape, scratch.left.shape[1]
    here, top = min(R, lines), lax.axis_index("x") * lines
    steps, layer = D // out.shape[0] // depth, inputs.layer[0]
    first = split * steps

    def fill(step, at):
        deep, full = pl.ds((first + step) * depth, depth), scratch.full.at[at]
        plgpu.copy_gmem_to_smem(inputs.x.at[pl.ds(top, here), deep], scratch.left.at[at, pl.ds(0, here)], full)
        start = 0
        for matrix in inputs.matrices:
            end = start + matrix.shape[2]

            def copy(matrix=matrix, start=start):
                block = matrix.at[layer, deep, pl.ds(column - start, width)]
                plgpu.copy_gmem_to_smem(block, scratch.right.at[at], full)

            pl.when((column >= start) & (column < end))(copy) if len(inputs.matrices) > 1 else copy()
            start = end

    def operands(at):
        return [(scratch.left.at[at, pl.ds(low, ROWS)], scratch.right.at[at]) for low in range(0, lines, ROWS)]

    totals = stream.sums(lines // ROWS, width, steps, min(stages, steps), scratch.full, fill, operands)
    for number, total in enumerate(totals):
        rows = pl.ds(top + number * ROWS, min(R, ROWS))
        stream.store(total, scratch.staged, out.at[split, rows, pl.ds(column, width)], min(R, ROWS))
