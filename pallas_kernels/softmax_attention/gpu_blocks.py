"""What the Hopper kernels of softmax attention share: tiles, the ring of slots, masks, products.

Every kernel has two warpgroups that compute, 64 tokens each, and a loader that streams blocks of the other side through
TMA into a ring of slots. `gpu_items` has which blocks those are.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

HALF = 64  # tokens of a warpgroup: the height of a wgmma
TILE = 2 * HALF  # tokens of a program
MULTIPROCESSORS = 132  # of an H100 or H200 SXM
COMPUTE_REGISTERS, LOADER_REGISTERS = {2: 240, 3: 160}, 24  # a multiprocessor has 512 for the threads of one number
DOWN, ACROSS = (plgpu.Layout.WGMMA.reduce(axis) for axis in (1, 0))  # one value for each row, for each column
LOW = -1e30  # below every logit; twice it is hidden


def tile(*shape):
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM(shape, jnp.bfloat16, transforms=transforms)


def compute_and_load(compute, load, computing: int = 2):
    """Runs compute(warpgroup) on the first ones, load() on the last."""
    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup < computing)
    def _():
        plgpu.set_max_registers(COMPUTE_REGISTERS[computing], action="increase")
        compute(warpgroup)

    @pl.when(warpgroup == computing)
    def _():
        plgpu.set_max_registers(LOADER_REGISTERS, action="decrease")
        load()


def stream(steps, stages: int, fills, done=0):
    """Keeps a ring of slots full: fills are pairs of barriers `free` and of fill(step, slot), which comes once the
    computing warpgroups have left the slot's part.

    done: steps of the ring before these.
    """

    @pl.loop(0, steps)
    def _(step):
        slot = lax.rem(done + step, jnp.int32(stages))
        for free, fill in fills:

            @pl.when(done + step >= stages)
            def _(free=free):
                plgpu.barrier_wait(free.at[slot])

            fill(step, slot)


def down(per_row, columns: int):
    return lax.broadcast_in_dim(per_row, (per_row.shape[0], columns), [0])


def across(per_column, rows: int):
    return lax.broadcast_in_dim(per_column, (rows, per_column.shape[0]), [1])


def visible(own_tags, other_tags, flipped: bool = False):
    """The mask: own tokens down, the other side's across, a value each; queries down, or `flipped` keys."""
    (position, document), (other_position, other_document) = own_tags, other_tags
    rows, columns = position.shape[0], other_position.shape[0]
    position, document = (down(x, columns) for x in (position, document))
    other_position, other_document = (across(x, rows) for x in (other_position, other_document))
    return (document == other_document) & ((position <= other_position) if flipped else (position >= other_position))


def products(*pairs, then=lambda: None):
    """float32, of pairs in SMEM, the left one (HALF, ...); all run together, and then() beside them."""

    def run(*accumulators):
        for accumulator, (left, right) in zip(accumulators, pairs, strict=True):
            plgpu.wgmma(accumulator, left, right)
        then()
        return tuple(accumulator[...] for accumulator in accumulators)

    shapes = [(left.shape[0], right.shape[1]) for left, right in pairs]
    return pl.run_scoped(run, *(plgpu.ACC(shape, jnp.float32) for shape in shapes))


def add_product(total, left, right, then=lambda: None):
    """total + left right, left in registers; then() beside it."""

    def run(accumulator):
        plgpu.wgmma(accumulator, left, right)
        then()

    return pl.run_state(run)(plgpu.ACC.init(total))


def add_products(totals, *pairs, then=lambda left: None):
    """totals + left right each, one behind the other: left(), in registers, is made beside the product before it, and
    then(the last left) beside the last.
    """

    def run(accumulators):
        for accumulator, (left, right) in zip(accumulators, pairs, strict=True):
            operand = left()
            plgpu.wgmma(accumulator, operand, right)
        then(operand)

    return pl.run_state(run)(tuple(plgpu.ACC.init(total) for total in totals))


def add_from_memory(totals, lefts, right):
    """totals + left right each, both in SMEM."""

    def run(accumulators):
        for accumulator, left in zip(accumulators, lefts, strict=True):
            plgpu.wgmma(accumulator, left, right)

    return pl.run_state(run)(tuple(plgpu.ACC.init(total) for total in totals))


def online_softmax(logits, carry, scale: float):
    """(weights in bfloat16, carry): a block's logits (HALF, keys), unscaled; carry: what is summed so far (out, each
    row's largest logit, the sum of its weights), rescaled where a larger one has come.
    """
    out, peak, total = carry
    new_peak = jnp.maximum(peak, logits.max(axis=1))
    rescale = jnp.exp2((peak - new_peak) * scale)
    weights = jnp.exp2(logits * scale - down(new_peak * scale, logits.shape[1]))
    total = total * rescale + weights.sum(axis=1)
    out = out * down(rescale, out.shape[1])
    weights = weights.astype(jnp.bfloat16)
    out, total, new_peak, weights = lax.optimization_barrier((out, total, new_peak, weights))
    return weights, (out, new_peak, total)


def zeros(*shape):
    layout = plgpu.Layout.WGMMA if len(shape) == 2 else DOWN
    return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), layout)


def leave(value, gmem, staged, *others, where=None):
    """Writes a warpgroup's (HALF, H) out: bfloat16 through SMEM, float32 as it is; others: (SMEM, its place). where:
    a bool, is anything written; not of float32.
    """
    if gmem.dtype == jnp.float32:
        gmem[...] = value
    else:
        staged[...] = value.astype(gmem.dtype)
        others += ((staged, gmem),)
    if others:
        plgpu.commit_smem()

    def copy():
        for source, target in others:
            plgpu.copy_smem_to_gmem(source, target)

    copy() if where is None else pl.when(where)(copy)
