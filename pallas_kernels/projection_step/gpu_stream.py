"""Products of few rows with large matrices on Hopper: what bounds them is reading the matrix once.

A program streams a column block of the matrix through a ring of slots in shared memory, the rows beside it, and
multiplies each slot while those behind it are on their way. Rows fill up a wgmma's 64; only those that are there are
read and written. Several programs share a multiprocessor, so that one's first and last bytes hide behind another's.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.few_rows import EIGHT, ROWS

ROW = plgpu.Layout.WGMMA.reduce(1)  # one value for each row of an accumulator


DEPTH = 64  # of a step of the sum: 128 bytes, the widest swizzle


class Blocks(NamedTuple):
    """How a product is cut: depth of a step of the sum, columns of a program, slots of the ring."""

    depth: int = DEPTH
    width: int = 64
    stages: int = 4


def tile(*shape, width: int, dtype=jnp.bfloat16):
    """Shared memory that wgmma and TMA both read: 8 rows of at most 128 bytes together.

    width: columns of the product; both of its operands lie alike.
    """
    across = min(width, 128 // jnp.dtype(dtype).itemsize)
    bytes_across = across * jnp.dtype(dtype).itemsize
    transforms = (plgpu.TilingTransform((EIGHT, across)), plgpu.SwizzleTransform(bytes_across))
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def sums(count: int, width: int, steps, stages: int, full, fill, operands):
    """float32 (ROWS, width) each: `count` products summed over the steps.

    fill(step, slot) starts the copies of a step; operands(slot) -> [(left, right), ...] in shared memory.
    """
    for step in range(stages):
        pl.when(step < steps)(lambda step=step: fill(jnp.int32(step), step))

    def run(*totals):
        @pl.loop(0, steps)
        def _(step):
            slot = lax.rem(step, jnp.int32(stages))
            plgpu.barrier_wait(full.at[slot])
            for total, (left, right) in zip(totals, operands(slot), strict=True):
                plgpu.wgmma(total, left, right)
            plgpu.wgmma_wait(0)
            pl.when(step + stages < steps)(lambda: fill(step + stages, slot))

        return [total[...] for total in totals]

    return pl.run_scoped(run, *[plgpu.ACC((ROWS, width), jnp.float32)] * count)


def launch(program, out_types, scratch, grid: tuple[int, ...]):
    """The kernel of program(inputs, *outs, scratch): one warpgroup a program."""
    return plgpu.kernel(
        program,
        out_type=out_types,
        scratch_types=[scratch],
        grid=grid,
        grid_names=("x", "y", "z")[: len(grid)],
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )


def store(value, staged, gmem, rows: int):
    """The first `rows` rows of a result, through shared memory."""
    staged[...] = value.astype(staged.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(staged.at[pl.ds(0, rows)], gmem)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # what is left is the memory's, not the program's
