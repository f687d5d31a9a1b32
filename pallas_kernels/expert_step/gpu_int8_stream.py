"""What both halves of int8 experts of few rows share on Hopper: how a product is cut, rings, sums that are added up.

A program's warpgroups share a column block. Each streams steps of the sum, or slots, of its own through a ring of its
own, so that none waits for another before the end.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import int8_gpu
from pallas_kernels.int8_gpu import COLUMN, COLUMNS
from pallas_kernels.projection_step import gpu_stream as stream


class Cut(NamedTuple):
    """How a product is cut: warpgroups of a program, depth of a step of the sum, columns of a program, slots of the
    ring that each warpgroup has.
    """

    warpgroups: int = 2
    depth: int = 64
    width: int = 128
    stages: int = 2

    def fitting(self, lines: int, columns: int) -> "Cut":
        """This, or what divides a product of other sizes, multiples of 64."""
        cut = self if lines % self.depth == 0 else self._replace(depth=64)
        if lines // cut.depth % cut.warpgroups:
            cut = cut._replace(warpgroups=1)
        return cut if columns % cut.width == 0 else cut._replace(width=COLUMNS)


class Ring(NamedTuple):
    """How a warpgroup has its blocks: slots from `first` on, `stages` of them, full when `full` says so."""

    first: jax.Array
    full: jax.Ref
    stages: int

    def slot(self, step):
        return self.first + lax.rem(step, jnp.int32(self.stages))

    def begin(self, steps, fill):
        for step in range(self.stages):
            pl.when(step < steps)(lambda step=step: fill(jnp.int32(step), self.first + step))

    def take(self, step, steps, fill, use):
        """use(slot), which ends with the slot left, once it is full; then it is filled again."""
        slot = self.slot(step)
        plgpu.barrier_wait(self.full.at[slot])
        used = use(slot)
        pl.when(step + self.stages < steps)(lambda: fill(step + self.stages, slot))
        return used


def exchange(cut: Cut, products: int, rows: int) -> dict:
    """Where the sums of the warpgroups after the first wait for it."""
    others = cut.warpgroups - 1
    if not others:
        return {"others": None, "others_full": None}
    sums = plgpu.SMEM((others, products, cut.width // COLUMNS, rows, COLUMNS), jnp.float32)
    return {"others": sums, "others_full": plgpu.Barrier(num_barriers=others)}


def rows_tile(slots: int, rows: int, depth: int):
    return stream.tile(slots, rows, depth, width=64 if depth % 64 == 0 else 32)


def launch(program, out_types, scratch, grid: tuple[int, int], warpgroups: int):
    return plgpu.kernel(
        program,
        out_type=out_types,
        scratch_types=[scratch],
        grid=grid,
        grid_names=("x", "y"),
        num_threads=warpgroups,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )


def added_up(warpgroup, sums, others, full):
    """The first warpgroup's way to the sums of all; what the others have waits in shared memory for it."""
    count = 0 if others is None else others.shape[0]
    for other in range(count):

        @pl.when(warpgroup == other + 1)
        def _(other=other):
            for number, parts in enumerate(sums):
                for part, value in enumerate(parts):
                    others.at[other, number, part][...] = value
            plgpu.commit_smem()
            plgpu.barrier_arrive(full.at[other])

    def total():
        added = [list(parts) for parts in sums]
        for other in range(count):
            plgpu.barrier_wait(full.at[other])
            for number, parts in enumerate(added):
                for part in range(len(parts)):
                    parts[part] += plgpu.load(others.at[other, number, part], layout=int8_gpu.TURNED)
        return added

    return total


def across(scale, rows: int):
    """A scale for each column of a sum."""
    return lax.broadcast_in_dim(plgpu.load(scale, layout=COLUMN, optimized=False), (rows, *scale.shape), [1])
