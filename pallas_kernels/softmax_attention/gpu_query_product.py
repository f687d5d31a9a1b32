"""The gradient of queries on Hopper where the logits' own is in memory: dQ = dS K / sqrt(H), 128 queries of one or two
heads an item, whose keys are the same and are read once for both.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import declared
from pallas_kernels.softmax_attention import gpu_blocks as blocks
from pallas_kernels.softmax_attention.gpu_backward import BLOCK, Part
from pallas_kernels.softmax_attention.gpu_blocks import HALF, TILE
from pallas_kernels.softmax_attention.gpu_items import Item, each_item
from pallas_kernels.softmax_attention.masking import Work
from pallas_kernels.varying import vary_alike

SHARED = 225 * 1024  # bytes of shared memory for the arrays
TOGETHER = 2


class _Scratch(NamedTuple):
    """A program's shared memory, in the order it lies there."""

    d: jax.Ref  # bfloat16 (stages * heads * 2, BLOCK, HALF): of each head the block of dS' for either strip
    free: jax.Ref  # barriers (stages,): both warpgroups have left the slot
    full: jax.Ref  # barriers (stages,): the slot's arrays have arrived
    k: jax.Ref  # bfloat16 (stages, BLOCK, H)
    staged: jax.Ref  # bfloat16 (2, HALF, H): each warpgroup's result on its way out


def query_gradient(d_logits, key, work: Work, out_dtype, part: Part):
    """dQ, (B, S, N, H) in `out_dtype`, of a part's rows and heads.

    Args:
      d_logits: dS', bfloat16 (B, N, T, S), as `gpu_key_gradients` leaves it.
      key: bfloat16, all rows and heads.
      work: of `masking.key_spans` of the part's rows.
    """
    (B, N, T, S), H, group = d_logits.shape, key.shape[3], d_logits.shape[1] // part.heads
    together = TOGETHER if group % TOGETHER == 0 else 1
    items = N // together * B * (S // TILE)
    programs = min(items, blocks.MULTIPROCESSORS)
    slot, staged = 2 * BLOCK * (together * TILE + H), 2 * 2 * HALF * H
    stages = (SHARED - staged) // slot
    kernel = plgpu.kernel(
        functools.partial(_program, items, programs, part, group // together),
        out_type=[jax.ShapeDtypeStruct((B, S, N, H), out_dtype, manual_axis_type=jax.typeof(key).mat)],
        scratch_types=[
            _Scratch(
                d=blocks.tile(stages * together * 2, BLOCK, HALF),
                free=plgpu.Barrier(num_arrivals=2, num_barriers=stages),
                full=plgpu.Barrier(num_arrivals=2 * together + 1, num_barriers=stages),
                k=blocks.tile(stages, BLOCK, H),
                staged=blocks.tile(2, HALF, H),
            )
        ],
        grid=(programs,),
        grid_names=("program",),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
    with declared.flops(2 * B * N * S * T * H):
        (gradient,) = kernel((d_logits, key, work))
    return vary_alike(key, gradient)[1]


def _program(items: int, programs: int, part: Part, groups: int, inputs, dq_gmem, smem: _Scratch):
    d_gmem, k_gmem, work = inputs
    stages, H = smem.k.shape[0], k_gmem.shape[3]
    together = smem.d.shape[0] // (2 * stages)

    def place(slot, i, strip):  # no constant: a product's operand has none in its index
        return smem.d.at[(slot * together + i) * 2 + strip]

    def each(warpgroup, body):
        each_item(work, d_gmem.shape[1] // together, items, programs, warpgroup, body)

    def load_item(item: Item):
        def fill(step, slot):
            keys, full = pl.ds((item.span.begin + step) * BLOCK, BLOCK), smem.full.at[slot]
            for i in range(together):
                for strip in range(2):
                    d = d_gmem.at[item.b, item.head * together + i, keys, item.tokens(strip)]
                    plgpu.copy_gmem_to_smem(d, place(slot, i, strip), full)
            k = k_gmem.at[item.b + part.row, keys, lax.div(item.head, jnp.int32(groups)) + part.head]
            plgpu.copy_gmem_to_smem(k, smem.k.at[slot], full)

        blocks.stream(item.span.steps, stages, [(smem.free, fill)], item.done)

    def compute_item(warpgroup, item: Item):
        span, own = item.span, item.tokens(item.strip)

        def step(block, sums, seen=True):
            slot = lax.rem(item.done + block - span.begin, jnp.int32(stages))
            plgpu.barrier_wait(smem.full.at[slot])
            if seen:
                left = [place(slot, i, item.strip).transpose((1, 0)) for i in range(together)]
                sums = blocks.add_from_memory(sums, left, smem.k.at[slot])
            plgpu.barrier_arrive(smem.free.at[slot])
            return sums

        pass_by = functools.partial(step, seen=False)
        sums = lax.fori_loop(span.begin, span.first, pass_by, (blocks.zeros(HALF, H),) * together)
        sums = lax.fori_loop(span.first, span.end, step, sums)
        sums = lax.fori_loop(span.end, span.stop, pass_by, sums)
        for i in range(together):
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            gmem = dq_gmem.at[item.b, own, item.head * together + i]
            blocks.leave(sums[i] * (1 / math.sqrt(H)), gmem, smem.staged.at[warpgroup])

    def compute(warpgroup):
        each(warpgroup, functools.partial(compute_item, warpgroup))
        plgpu.wait_smem_to_gmem(0)

    blocks.compute_and_load(compute, lambda: each(0, load_item))
