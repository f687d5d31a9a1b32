"""The gradients of keys and values on Hopper: 128 keys of one head an item, the queries of all heads that read them
streamed past.

The logits stand with keys down, so that P' and dS' are left operands as they are. An item is long, and has a program of
its own: the chip then gives each to a multiprocessor as one is free.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import declared
from pallas_kernels.softmax_attention import gpu_backward as backward
from pallas_kernels.softmax_attention import gpu_blocks as blocks
from pallas_kernels.softmax_attention.gpu_backward import BLOCK
from pallas_kernels.softmax_attention.gpu_blocks import ACROSS, HALF, TILE
from pallas_kernels.softmax_attention.gpu_items import Item, each_item
from pallas_kernels.softmax_attention.masking import Work
from pallas_kernels.varying import vary_alike

STAGES = 2


def key_gradients(arrays, query_tags, key_tags, work: Work, out_dtype, part: backward.Part | None = None):
    """(dK, dV), (B, T, K, H) in `out_dtype`; of a part of rows and heads, and then also dS', (B, N, T, S) bfloat16, the
    gradient of the logits, whose blocks outside of `work` are not written.

    Args:
      arrays: query, key, value, d_out as in the forward pass; lse and delta = sum over H of d_out * out, (B, N, S)
        float32. Lengths, padding and tags as in the forward pass.
      work: of `masking.query_spans` in blocks of BLOCK.
    """
    query, key, *_ = arrays
    (_, T, K, H), S, group = key.shape, query.shape[1], query.shape[2] // key.shape[2]
    with_logits = part is not None
    part = part or backward.Part(0, key.shape[0], 0, K)
    B, K = part.rows, part.heads
    vary = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(query).mat)
    items = K * B * (T // TILE)
    kernel = backward.kernel_of(
        functools.partial(_key_program, items, part, group),
        [vary((B, T, K, H), out_dtype)] * 2 + with_logits * [vary((B, K * group, T, S), query.dtype)],
        backward.scratch_of(
            H,
            stages=STAGES,
            queries=(STAGES, BLOCK),
            keys=(2, HALF),
            own_copies=2 * 4,
            streamed_copies=6,
            staged=blocks.tile(2, 2, HALF, BLOCK) if with_logits else None,
        ),
        programs=items,
    )
    inputs = backward.inputs_of(arrays, key_tags, query_tags, work)
    with declared.flops(4 * 2 * B * K * group * S * T * H):
        gradients = kernel(inputs)
    return vary_alike(query, *gradients)[1:]


def _key_program(items: int, part: backward.Part, heads: int, inputs: backward.Inputs, dk_gmem, dv_gmem, *refs):
    *logits_gmem, smem = refs
    H = inputs.k.shape[3]
    scale = 1 / math.sqrt(H)

    def each(warpgroup, body):
        each_item(inputs.work, part.heads, items, items, warpgroup, body, repeats=heads)

    def load_item(item: Item):
        item = part.whole(item)
        b, span = item.b, item.span
        keys = (inputs.k, smem.k), (inputs.v, smem.v)
        backward.load_own(inputs, smem, item, lambda own: [(x.at[b, own, item.head], y) for x, y in keys])

        def fill(step, slot):
            n = item.head * heads + lax.div(step, span.steps)
            tokens = pl.ds((span.begin + lax.rem(step, span.steps)) * BLOCK, BLOCK)
            backward.load_streamed_tags(inputs, smem, b, tokens, slot)
            full = smem.full.at[slot]
            for array, target in ((inputs.q, smem.q), (inputs.d, smem.d)):
                plgpu.copy_gmem_to_smem(array.at[b, tokens, n], target.at[slot], full)
            for array, target in ((inputs.lse, smem.lse), (inputs.delta, smem.delta)):
                plgpu.copy_gmem_to_smem(array.at[b, n, tokens], target.at[slot], full)

        blocks.stream(span.steps * heads, STAGES, [(smem.free, fill)], item.done)

    def compute_item(warpgroup, item: Item):
        span, strip, own = item.span, item.strip, item.tokens(item.strip)
        plgpu.barrier_wait(smem.own_full)
        k, v, own_tags = (x.at[strip] for x in (smem.k, smem.v, smem.own_tags))
        own_tags = backward.taken_tags(own_tags)

        def slot_of(head, block):
            return lax.rem(item.done + head * span.steps + block - span.begin, jnp.int32(STAGES))

        def idle(head, block):
            plgpu.barrier_wait(smem.full.at[slot_of(head, block)])
            plgpu.barrier_arrive(smem.free.at[slot_of(head, block)])

        def step(head, block, carry, *, masked: bool):
            dk, dv = carry
            slot = slot_of(head, block)
            plgpu.barrier_wait(smem.full.at[slot])
            q, d = smem.q.at[slot], smem.d.at[slot]
            lse = plgpu.load(smem.lse.at[slot], layout=ACROSS)
            logits, d_weights = blocks.products((k, q.transpose((1, 0))), (v, d.transpose((1, 0))))
            logits = logits * (scale * math.log2(math.e)) - blocks.across(lse * math.log2(math.e), HALF)
            if masked:
                visible = blocks.visible(own_tags, backward.streamed_tags(smem, slot), flipped=True)
                logits = jnp.where(visible, logits, jnp.float32(blocks.LOW))
            weights = jnp.exp2(logits)

            def d_logits():
                # Read here and not with lse: one of them at a time, and no register is spilled.
                delta = plgpu.load(smem.delta.at[slot], layout=ACROSS)
                return (weights * (d_weights - blocks.across(delta, HALF))).astype(jnp.bfloat16)

            def kept(d_logits):
                if logits_gmem:
                    place = item.b, item.head * heads + head, own, pl.ds(block * BLOCK, BLOCK)
                    staged = smem.staged.at[warpgroup, lax.rem(block, jnp.int32(2))]
                    _leave_beside(d_logits, staged, logits_gmem[0].at[place])

            dv, dk = blocks.add_products((dv, dk), (lambda: weights.astype(jnp.bfloat16), d), (d_logits, q), then=kept)
            plgpu.barrier_arrive(smem.free.at[slot])
            return dk, dv

        def one_head(head, carry):
            if logits_gmem:
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            return span.walk(functools.partial(step, head), carry, functools.partial(idle, head))

        dk, dv = lax.fori_loop(0, heads, one_head, (blocks.zeros(HALF, H), blocks.zeros(HALF, H)))
        blocks.leave(dk * scale, dk_gmem.at[item.b, own, item.head], k)
        blocks.leave(dv, dv_gmem.at[item.b, own, item.head], v)
        plgpu.wait_smem_to_gmem(0)

    blocks.compute_and_load(
        lambda warpgroup: each(warpgroup, functools.partial(compute_item, warpgroup)), lambda: each(0, load_item)
    )


def _leave_beside(value, staged, gmem):
    """Writes a block out through one of two places in SMEM; the one before it may still be on its way."""
    plgpu.wait_smem_to_gmem(1, wait_read_only=True)
    staged[...] = value
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(staged, gmem)
