"""The gradient of queries on Hopper: 128 queries of one head an item, their keys streamed past.

A program takes its items one after the other, as in the forward pass.
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
from pallas_kernels.softmax_attention.gpu_blocks import DOWN, HALF, TILE
from pallas_kernels.softmax_attention.gpu_items import Item, each_item
from pallas_kernels.softmax_attention.masking import Work
from pallas_kernels.varying import vary_alike


def query_gradient(arrays, query_tags, key_tags, work: Work, out_dtype):
    """dQ, (B, S, N, H) in `out_dtype`, and delta, (B, N, S) float32.

    arrays: query, key, value, d_out, lse (B, N, S) float32, and either delta or the output that it is to be made of.
    work: of `masking.key_spans` in blocks of BLOCK.
    """
    query, key, *_, last = arrays
    from_out = last.ndim == 4
    B, S, N, H = query.shape
    vary = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(query).mat)
    items = N * B * (S // TILE)
    programs = min(items, blocks.MULTIPROCESSORS)
    stages = 2 if from_out and H > 64 else 3  # as many as there is room for
    kernel = backward.kernel_of(
        functools.partial(_query_program, items, programs, N // key.shape[2]),
        [vary(query.shape, out_dtype)] + from_out * [vary((B, N, S), jnp.float32)],
        backward.scratch_of(
            H,
            stages=stages,
            queries=(2, HALF),
            keys=(stages, BLOCK),
            own_copies=2 * 6,
            streamed_copies=4,
            out=blocks.tile(2, HALF, H) if from_out else None,
            staged=blocks.tile(2, HALF, H),
        ),
        programs=programs,
    )
    inputs = backward.inputs_of(arrays, query_tags, key_tags, work)
    with declared.flops(3 * 2 * B * N * S * key.shape[1] * H):
        gradient, *delta = kernel(inputs)
    return vary_alike(query, gradient, *(delta or [last]))[1:]


def _query_program(items: int, programs: int, heads: int, inputs: backward.Inputs, dq_gmem, *refs):
    *delta_gmem, smem = refs
    H, stages = inputs.q.shape[3], smem.k.shape[0]
    scale = 1 / math.sqrt(H)

    def each(warpgroup, body):
        each_item(inputs.work, inputs.q.shape[2], items, programs, warpgroup, body)

    def load_item(item: Item):
        b, n, span = item.b, item.head, item.span
        kv_head = lax.div(n, jnp.int32(heads))

        def copies(own):
            wide = (inputs.q, smem.q), (inputs.d, smem.d), (inputs.out, smem.out)
            narrow = (inputs.lse, smem.lse), (inputs.delta, smem.delta)
            pairs = [(x.at[b, own, n], y) for x, y in wide if x is not None]
            return pairs + [(x.at[b, n, own], y) for x, y in narrow if x is not None]

        def fill(step, slot):
            tokens = pl.ds((span.begin + step) * BLOCK, BLOCK)
            backward.load_streamed_tags(inputs, smem, b, tokens, slot)
            for array, target in ((inputs.k, smem.k), (inputs.v, smem.v)):
                plgpu.copy_gmem_to_smem(array.at[b, tokens, kv_head], target.at[slot], smem.full.at[slot])

        backward.load_own(inputs, smem, item, copies)
        blocks.stream(span.steps, stages, [(smem.free, fill)], item.done)

    def compute_item(warpgroup, item: Item):
        span, strip, own = item.span, item.strip, item.tokens(item.strip)
        plgpu.barrier_wait(smem.own_full)
        q, d, own_tags = (x.at[strip] for x in (smem.q, smem.d, smem.own_tags))
        lse = plgpu.load(smem.lse.at[strip], layout=DOWN) * math.log2(math.e)
        # Left operands in registers: from shared memory every product of 64 keys would read them again.
        held_q, held_d = (plgpu.load(x, layout=plgpu.Layout.WGMMA) for x in (q, d))
        own_tags = backward.taken_tags(own_tags)
        if inputs.out is None:
            delta = plgpu.load(smem.delta.at[strip], layout=DOWN)
        else:
            out = plgpu.load(smem.out.at[strip], layout=plgpu.Layout.WGMMA)
            delta = jnp.sum(held_d.astype(jnp.float32) * out.astype(jnp.float32), axis=1)
        plgpu.barrier_arrive(smem.own_free)

        def slot_of(block):
            return lax.rem(item.done + block - span.begin, jnp.int32(stages))

        def idle(block):
            plgpu.barrier_wait(smem.full.at[slot_of(block)])
            plgpu.barrier_arrive(smem.free.at[slot_of(block)])

        def step(block, dq, *, masked: bool):
            slot = slot_of(block)
            plgpu.barrier_wait(smem.full.at[slot])
            k, v = smem.k.at[slot], smem.v.at[slot]
            logits, d_weights = blocks.products((held_q, k.transpose((1, 0))), (held_d, v.transpose((1, 0))))
            logits = logits * (scale * math.log2(math.e)) - blocks.down(lse, BLOCK)
            if masked:
                visible = blocks.visible(own_tags, backward.streamed_tags(smem, slot))
                logits = jnp.where(visible, logits, jnp.float32(blocks.LOW))
            d_logits = jnp.exp2(logits) * (d_weights - blocks.down(delta, BLOCK))
            dq = blocks.add_product(dq, d_logits.astype(jnp.bfloat16), k)
            plgpu.barrier_arrive(smem.free.at[slot])
            return dq

        dq = span.walk(step, blocks.zeros(HALF, H), idle)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        others = []
        if delta_gmem:
            staged = smem.delta.at[warpgroup]
            staged[...] = delta
            others = [(staged, delta_gmem[0].at[item.b, item.head, own])]
        blocks.leave(dq * scale, dq_gmem.at[item.b, own, item.head], smem.staged.at[warpgroup], *others)

    def compute(warpgroup):
        each(warpgroup, functools.partial(compute_item, warpgroup))
        plgpu.wait_smem_to_gmem(0)

    blocks.compute_and_load(compute, lambda: each(0, load_item))
