"""What the Hopper kernels of softmax attention share: tiles, the ring of slots, masks, products.

Every kernel has two warpgroups that compute, 64 tokens each, and a loader that streams blocks of the other side through
TMA into a ring of slots. Which blocks those are comes from `masking.Spans`: blocks that are hidden are never read, and
only those not all visible are masked.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

HALF = 64  # tokens of a warpgroup: the height of a wgmma
TILE = 2 * HALF  # tokens of a program
LOADER = 2  # number of the warpgroup that loads
MULTIPROCESSORS = 132  # of an H100 or H200 SXM
COMPUTE_REGISTERS, LOADER_REGISTERS = 240, 24  # a multiprocessor has 512 for the threads of one number
DOWN, ACROSS = (plgpu.Layout.WGMMA.reduce(axis) for axis in (1, 0))  # one value for each row, for each column
LOW = -1e30  # below every logit; twice it is hidden


def tile(*shape):
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM(shape, jnp.bfloat16, transforms=transforms)


def compute_and_load(compute, load):
    """Runs compute(warpgroup) on the two that compute, load() on the third."""
    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup < LOADER)
    def _():
        plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
        compute(warpgroup)

    @pl.when(warpgroup == LOADER)
    def _():
        plgpu.set_max_registers(LOADER_REGISTERS, action="decrease")
        load()


def place(order_gmem, item, tiles: int):
    """(row, tile) of an item of `masking.longest_first`."""
    # Under `shard_map` a load has the array's varying axes in its type; arithmetic in a kernel does not keep them.
    place = order_gmem[item] + jnp.int32(0)
    return lax.div(place, jnp.int32(tiles)), lax.rem(place, jnp.int32(tiles))


def each_item(items: int, programs: int, describe, body):
    """body(number, item, done) for every item of this program, its `number`-th, after `done` steps of those before.

    Items come in order of their length, so the programs take them there and back: the first of one round is the last of
    the next, and all end at about the same time. describe(index) reads what an item is, its `steps` among it; that of
    the next one is on its way from memory while this one is worked at.
    """
    program, whole_rounds = lax.axis_index("program"), items // programs
    backwards = programs - 1 - program
    place_in_last = backwards if whole_rounds % 2 else program
    count = whole_rounds + jnp.where(place_in_last < items % programs, 1, 0)

    def index_of(number):
        return number * programs + jnp.where(lax.rem(number, jnp.int32(2)) == 1, backwards, program)

    def one(number, carry):
        done, item = carry
        following = describe(jnp.minimum(index_of(number + 1), items - 1))
        body(number, item, done)
        return done + item.steps, following

    lax.fori_loop(0, count, one, (jnp.int32(0), describe(program)))


class Span(NamedTuple):
    """`masking.Spans` of one program."""

    first: jax.Array
    clear: jax.Array
    clear_end: jax.Array
    end: jax.Array

    @classmethod
    def of(cls, spans_gmem, b, block):
        # Under `shard_map` a load has the array's varying axes in its type, arithmetic in a kernel does not keep them,
        # and a loop's bounds have to begin with the type they end with.
        return cls(*(spans_gmem[i, b, block] + jnp.int32(0) for i in range(4)))

    @property
    def steps(self):
        return self.end - self.first

    def walk(self, step, carry, between=lambda: None):
        """carry = step(block, carry, masked) over the blocks in order; between() on the way."""
        for low, high, masked in (
            (self.first, self.clear, True),
            (self.clear, self.clear_end, False),
            (self.clear_end, self.end, True),
        ):
            carry = lax.fori_loop(low, high, functools.partial(step, masked=masked), carry)
            if not masked:
                between()
        return carry


def stream(steps, stages: int, free, fill, done=0):
    """Keeps a ring of slots full: fill(step, slot) for every step, once the computing warpgroups have left the slot.

    done: steps of the ring before these.
    """

    @pl.loop(0, steps)
    def _(step):
        slot = lax.rem(done + step, jnp.int32(stages))

        @pl.when(done + step >= stages)
        def _():
            for barrier in free:
                plgpu.barrier_wait(barrier.at[slot])

        fill(step, slot)


def down(per_row, columns: int):
    return lax.broadcast_in_dim(per_row, (per_row.shape[0], columns), [0])


def across(per_column, rows: int):
    return lax.broadcast_in_dim(per_column, (rows, per_column.shape[0]), [1])


def products(*pairs, then=lambda: None):
    """float32, of pairs in SMEM, the left one (HALF, ...); all run together, and then() beside them."""

    def run(*accumulators):
        for accumulator, (left, right) in zip(accumulators, pairs, strict=True):
            plgpu.wgmma(accumulator, left, right)
        then()
        return tuple(accumulator[...] for accumulator in accumulators)

    shapes = [(left.shape[0], right.shape[1]) for left, right in pairs]
    return pl.run_scoped(run, *(plgpu.ACC(shape, jnp.float32) for shape in shapes))


def add_product(total, left, right):
    """total + left right, left in registers."""

    def run(accumulator):
        plgpu.wgmma(accumulator, left, right)

    return pl.run_state(run)(plgpu.ACC.init(total))


def add_products(totals, *pairs):
    """totals + left right each, one behind the other: left(), in registers, is made beside the product before it."""

    def run(accumulators):
        for accumulator, (left, right) in zip(accumulators, pairs, strict=True):
            plgpu.wgmma(accumulator, left(), right)

    return pl.run_state(run)(tuple(plgpu.ACC.init(total) for total in totals))


def zeros(*shape):
    layout = plgpu.Layout.WGMMA if len(shape) == 2 else DOWN
    return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), layout)


def leave(value, gmem, staged, *others):
    """Writes a warpgroup's (HALF, H) out: bfloat16 through SMEM, float32 as it is; others: (SMEM, its place)."""
    if gmem.dtype == jnp.float32:
        gmem[...] = value
    else:
        staged[...] = value.astype(gmem.dtype)
        others += ((staged, gmem),)
    if others:
        plgpu.commit_smem()
    for source, target in others:
        plgpu.copy_smem_to_gmem(source, target)
