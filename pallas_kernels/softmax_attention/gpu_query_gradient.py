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
from pallas_kernels.softmax_attention.gpu_backward import BLOCK, STAGES
from pallas_kernels.softmax_attention.gpu_blocks import DOWN, HALF, TILE
from pallas_kernels.softmax_attention.masking import Spans
from pallas_kernels.varying import vary_alike

QUERIES = 2  # items whose queries are there


def query_gradient(arrays, query_tags, key_tags, spans: Spans, out_dtype):
    """dQ, (B, S, N, H) in `out_dtype`. spans: `masking.key_spans` in blocks of BLOCK."""
    query, key, *_ = arrays
    B, S, N, H = query.shape
    vary = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(query).mat)
    items = N * B * (S // TILE)
    programs = min(items, blocks.MULTIPROCESSORS)
    kernel = backward.kernel_of(
        functools.partial(_query_program, items, programs, N // key.shape[2]),
        [vary(query.shape, out_dtype)],
        backward.scratch_of(H, queries=(QUERIES, 2, HALF), keys=(STAGES, BLOCK), own_copies=2 * 6, streamed_copies=4),
        programs=programs,
    )
    inputs = backward.inputs_of(arrays, query_tags, key_tags, spans)
    with declared.flops(3 * 2 * B * N * S * key.shape[1] * H):
        (gradient,) = kernel(inputs)
    return vary_alike(query, gradient)[1]


def _query_program(items: int, programs: int, heads: int, inputs: backward.Inputs, dq_gmem, smem: backward.Scratch):
    H = inputs.q.shape[3]
    scale = 1 / math.sqrt(H)

    def each(body):
        backward.each_item(inputs, items, programs, inputs.q.shape[2], lambda span: span.steps, body)

    def load_item(item: backward.Item):
        b, n, span = item.b, item.head, item.span
        kv_head = lax.div(n, jnp.int32(heads))

        def copies(own):
            wide = [(x.at[b, own, n], y) for x, y in ((inputs.q, smem.q), (inputs.d, smem.d))]
            return wide + [(x.at[b, n, own], y) for x, y in ((inputs.lse, smem.lse), (inputs.delta, smem.delta))]

        def fill(step, slot):
            tokens = pl.ds((span.first + step) * BLOCK, BLOCK)
            backward.load_streamed_tags(inputs, smem, b, tokens, slot)
            for array, target in ((inputs.k, smem.k), (inputs.v, smem.v)):
                plgpu.copy_gmem_to_smem(array.at[b, tokens, kv_head], target.at[slot], smem.full.at[slot])

        backward.load_own(inputs, smem, item, copies)
        blocks.stream(span.steps, STAGES, (smem.free,), fill, item.done)

    def compute_item(warpgroup, item: backward.Item):
        span, buffer, own = item.span, item.buffer(smem), item.own(warpgroup)
        plgpu.barrier_wait(smem.own_full.at[buffer])
        q, d, own_tags = (x.at[buffer, warpgroup] for x in (smem.q, smem.d, smem.own_tags))
        lse, delta = (plgpu.load(x.at[buffer, warpgroup], layout=DOWN) for x in (smem.lse, smem.delta))
        lse = lse * math.log2(math.e)
        # Left operands in registers: from shared memory every product of 64 keys would read them again.
        held_q, held_d = (plgpu.load(x, layout=plgpu.Layout.WGMMA) for x in (q, d))

        def step(block, dq, *, masked: bool):
            slot = lax.rem(item.done + block - span.first, jnp.int32(STAGES))
            plgpu.barrier_wait(smem.full.at[slot])
            k, v = smem.k.at[slot], smem.v.at[slot]
            logits, d_weights = blocks.products((held_q, k.transpose((1, 0))), (held_d, v.transpose((1, 0))))
            logits = logits * (scale * math.log2(math.e)) - blocks.down(lse, BLOCK)
            if masked:
                visible = backward.visible(smem, own_tags, slot, keys_down=False)
                logits = jnp.where(visible, logits, jnp.float32(blocks.LOW))
            d_logits = jnp.exp2(logits) * (d_weights - blocks.down(delta, BLOCK))
            dq = blocks.add_product(dq, d_logits.astype(jnp.bfloat16), k)
            plgpu.barrier_arrive(smem.free.at[slot])
            return dq

        def let_next_in():
            """Once the result of the item before has left its queries' place, which those of the next one take."""

            @pl.when(item.number > 0)
            def _():
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                plgpu.barrier_arrive(smem.own_free.at[1 - buffer])

        dq = span.walk(step, blocks.zeros(HALF, H), let_next_in)
        blocks.leave(dq * scale, dq_gmem.at[item.b, own, item.head], q)

    def compute(warpgroup):
        each(functools.partial(compute_item, warpgroup))
        plgpu.wait_smem_to_gmem(0)

    blocks.compute_and_load(compute, lambda: each(load_item))
