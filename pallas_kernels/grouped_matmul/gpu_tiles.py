"""What the Hopper kernels of the grouped matmul share: sizes, whose a tile of rows is, the walk over items.

As many programs as multiprocessors take the items (tiles of the result) one after the other. Two warpgroups compute
half a tile each; the third streams blocks through TMA into a ring of slots, over an item's end into the next one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

HALF = 64  # rows of a warpgroup: the height of a wgmma
TILE = 2 * HALF  # rows of an item
WIDTHS = (256, 128)  # columns of an item, the first that divides the result's
DEPTH = 64  # of a step of the sum: 128 bytes, the widest swizzle
STAGES = 3
LOADER = 2  # number of the warpgroup that loads
COMPUTE_REGISTERS, LOADER_REGISTERS = 232, 40
MULTIPROCESSORS = 132  # of an H100 or H200 SXM


def width_of(columns: int) -> int:
    return next(width for width in WIDTHS if columns % width == 0)


def experts_of_tiles(group_sizes_E: jax.Array, R: int) -> jax.Array:
    """The expert of each TILE rows, int32 (R / TILE,); E for those after the last group."""
    ends = jnp.cumsum(group_sizes_E, dtype=jnp.int32)
    start = jnp.arange(0, R, TILE, dtype=jnp.int32)
    return jnp.sum(start[:, None] >= ends[None], axis=1, dtype=jnp.int32)


class Scratch(NamedTuple):
    """A program's shared memory: a ring of STAGES slots, and what leaves it."""

    free: jax.Ref  # barriers (STAGES,): both computing warpgroups have left the slot
    full: jax.Ref  # barriers (STAGES,): the slot's three copies, of `left` twice and of `right`, have arrived
    left: jax.Ref  # bfloat16 (STAGES, 2, ...): the left operand of a step, of each computing warpgroup
    right: jax.Ref  # bfloat16 (STAGES, ...): the right operand of a step, of both
    staged: jax.Ref  # bfloat16 (2, HALF, width): what each computing warpgroup writes out


def tile(*shape):
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM(shape, jnp.bfloat16, transforms=transforms)


def kernel(program, out_type, left: tuple[int, int], right: tuple[int, int], width: int, items: int):
    """Of program(inputs, out, Scratch); `left` (of one warpgroup) and `right` are the shapes of a step's operands."""
    scratch = Scratch(
        free=plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
        full=plgpu.Barrier(num_arrivals=3, num_barriers=STAGES),
        left=tile(STAGES, 2, *left),
        right=tile(STAGES, *right),
        staged=tile(2, HALF, width),
    )
    return launch(program, [out_type], scratch, items)


def launch(program, out_types, scratch, items: int):
    """The kernel of program(inputs, *outs, scratch): two warpgroups that compute and one that loads."""
    return plgpu.kernel(
        program,
        out_type=out_types,
        scratch_types=[scratch],
        grid=(min(items, MULTIPROCESSORS),),
        grid_names=("program",),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )


def each_item(items: int, steps_of, compute, load):
    """For every item of this program compute(warpgroup, index, done, steps) on the two warpgroups that compute and
    load(index, done, steps) on the third: `steps` of the sum (`steps_of(index)`), after `done` of the items before.
    """
    program, programs = lax.axis_index("program"), min(items, MULTIPROCESSORS)
    count = lax.div(items - program + (programs - 1), jnp.int32(programs))

    def walk(body):
        def one(i, done):
            index = program + i * programs
            steps = steps_of(index)
            body(index, done, steps)
            return done + steps

        lax.fori_loop(0, count, one, jnp.int32(0))

    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup < LOADER)
    def _():
        plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
        walk(lambda *item: compute(warpgroup, *item))
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == LOADER)
    def _():
        plgpu.set_max_registers(LOADER_REGISTERS, action="decrease")
        walk(load)


def slot_of(step, stages: int = STAGES):
    return lax.rem(step, jnp.int32(stages))


def stream(done, steps, free, fill, stages: int = STAGES):
    """Keeps the ring full: fill(step, slot) for every step, once both computing warpgroups have left the slot."""

    @pl.loop(0, steps)
    def _(step):
        slot = slot_of(done + step, stages)

        @pl.when(done + step >= stages)
        def _():
            plgpu.barrier_wait(free.at[slot])

        fill(step, slot)


def accumulate(done, steps, scratch: Scratch, operands):
    """float32 (HALF, width), the sum of products over an item's steps: operands(slot) -> (left, right)."""

    def leave(step):
        plgpu.barrier_arrive(scratch.free.at[slot_of(done + step)])

    def run(total):
        @pl.loop(0, steps)
        def _(step):
            slot = slot_of(done + step)
            plgpu.barrier_wait(scratch.full.at[slot])
            plgpu.wgmma(total, *operands(slot))
            plgpu.wgmma_wait(1)  # the product before is done
            pl.when(step > 0)(lambda: leave(step - 1))

        return total[...]

    total = pl.run_scoped(run, plgpu.ACC(scratch.staged.shape[1:], jnp.float32))
    pl.when(steps > 0)(lambda: leave(steps - 1))
    return total


def store(total, staged, gmem):
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the item before leaves from `staged`
    staged[...] = total.astype(gmem.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(staged, gmem)
