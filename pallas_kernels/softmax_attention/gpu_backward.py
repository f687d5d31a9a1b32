"""Softmax attention on Hopper, backward, in two passes, as in FlashAttention: neither holds a (queries, keys) matrix.

    P = exp(Q K' - lse)     dS = P * (dO V' - delta)     dV = P' dO     dK = dS' Q / sqrt(H)     dQ = dS K / sqrt(H)

`key_gradients`: 128 keys of one head a program, the queries of all heads that read them streamed past. The logits stand
with keys down, so that P' and dS' are left operands as they are. `query_gradient`: 128 queries, keys streamed past.
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
from pallas_kernels.softmax_attention.gpu_blocks import ACROSS, DOWN, HALF, TILE
from pallas_kernels.softmax_attention.masking import Spans, longest_first
from pallas_kernels.varying import vary_alike

BLOCK = 64  # tokens streamed past at a time
STAGES = 2


class _Inputs(NamedTuple):
    """What the programs read. A program's own tokens are keys in `key_gradients`, queries in `query_gradient`; the
    tokens of the other side are streamed past them.
    """

    d: jax.Ref  # bfloat16 (B, S, N, H), the gradient of the output
    delta: jax.Ref  # float32 (B, N, S), sum over H of d * out
    k: jax.Ref  # bfloat16 (B, T, K, H)
    lse: jax.Ref  # float32 (B, N, S)
    order: jax.Ref  # int32 (B * tiles of the own side,), `masking.longest_first`
    streamed_tags: tuple[jax.Ref, jax.Ref]  # positions and document ids, int32 (B, S) or (B, T)
    own_tags: tuple[jax.Ref, jax.Ref]  # positions and document ids, int32 (B, T) or (B, S)
    q: jax.Ref  # bfloat16 (B, S, N, H)
    spans: jax.Ref  # int32 (4, B, tiles of the own side), `masking.query_spans` or `masking.key_spans`
    v: jax.Ref  # bfloat16 (B, T, K, H)


class _Scratch(NamedTuple):
    """A program's shared memory, in the order it lies there.

    What is of the own side is (2, HALF, ...), a part for each warpgroup; what is streamed is (STAGES, BLOCK, ...), a
    part for each slot of the ring.
    """

    d: jax.Ref  # bfloat16 (..., H), of the queries' side
    delta: jax.Ref  # float32, of the queries' side
    free: jax.Ref  # barriers (STAGES,): both warpgroups have left the slot
    full: jax.Ref  # barriers (STAGES,): the slot's arrays have arrived
    k: jax.Ref  # bfloat16 (..., H), of the keys' side
    lse: jax.Ref  # float32, of the queries' side
    own_tags: jax.Ref  # int32 (2, 2, HALF): of each warpgroup's tokens the positions, the document ids
    own_full: jax.Ref  # barriers (2,): each warpgroup's own arrays have arrived
    streamed_positions: jax.Ref  # int32
    q: jax.Ref  # bfloat16 (..., H), of the queries' side
    streamed_documents: jax.Ref  # int32
    v: jax.Ref  # bfloat16 (..., H), of the keys' side


def key_gradients(arrays, query_tags, key_tags, spans: Spans, out_dtype):
    """(dK, dV), (B, T, K, H) in `out_dtype`.

    Args:
      arrays: query, key, value, d_out as in the forward pass; lse and delta = sum over H of d_out * out, (B, N, S)
        float32. Lengths, padding and tags as in the forward pass.
      spans: `masking.query_spans` in blocks of BLOCK.
    """
    query, key, *_ = arrays
    (B, T, K, H), N = key.shape, query.shape[2]
    vary = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(query).mat)
    kernel = _kernel(
        functools.partial(_key_program, N // K),
        [vary(key.shape, out_dtype)] * 2,
        _scratch(H, queries=(STAGES, BLOCK), keys=(2, HALF), own_copies=4, streamed_copies=6),
        grid=(K, T // TILE * B),
    )
    inputs = _inputs(arrays, key_tags, query_tags, spans)
    with declared.flops(4 * 2 * B * N * query.shape[1] * T * H):
        gradients = kernel(inputs)
    return vary_alike(query, *gradients)[1:]


def query_gradient(arrays, query_tags, key_tags, spans: Spans, out_dtype):
    """dQ, (B, S, N, H) in `out_dtype`. spans: `masking.key_spans` in blocks of BLOCK."""
    query, key, *_ = arrays
    B, S, N, H = query.shape
    vary = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(query).mat)
    kernel = _kernel(
        functools.partial(_query_program, N // key.shape[2]),
        [vary(query.shape, out_dtype)],
        _scratch(H, queries=(2, HALF), keys=(STAGES, BLOCK), own_copies=6, streamed_copies=4),
        grid=(N, S // TILE * B),
    )
    inputs = _inputs(arrays, query_tags, key_tags, spans)
    with declared.flops(3 * 2 * B * N * S * key.shape[1] * H):
        (gradient,) = kernel(inputs)
    return vary_alike(query, gradient)[1]


def _scratch(H: int, *, queries, keys, own_copies: int, streamed_copies: int) -> _Scratch:
    """queries, keys: shapes before H of the two sides' arrays. A copy is one array's: with a query's or a key's, two of
    the tags; queries have q, d, lse and delta, keys k and v.
    """
    return _Scratch(
        d=blocks.tile(*queries, H),
        delta=plgpu.SMEM(queries, jnp.float32),
        free=plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
        full=plgpu.Barrier(num_arrivals=streamed_copies, num_barriers=STAGES),
        k=blocks.tile(*keys, H),
        lse=plgpu.SMEM(queries, jnp.float32),
        own_tags=plgpu.SMEM((2, 2, HALF), jnp.int32),
        own_full=plgpu.Barrier(num_arrivals=own_copies, num_barriers=2),
        streamed_positions=plgpu.SMEM((STAGES, BLOCK), jnp.int32),
        q=blocks.tile(*queries, H),
        streamed_documents=plgpu.SMEM((STAGES, BLOCK), jnp.int32),
        v=blocks.tile(*keys, H),
    )


def _kernel(program, out_type, scratch: _Scratch, *, grid):
    return plgpu.kernel(
        program,
        out_type=out_type,
        scratch_types=[scratch],
        grid=grid,
        grid_names=("head", "item"),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )


def _inputs(arrays, own_tags, streamed_tags, spans: Spans) -> _Inputs:
    q, k, v, d, lse, delta = arrays
    tags = {"streamed_tags": streamed_tags, "own_tags": own_tags}
    order, table = longest_first(spans), jnp.stack(spans)
    return _Inputs(d=d, delta=delta, k=k, lse=lse, order=order, q=q, spans=table, v=v, **tags)


def _visible(smem: _Scratch, warpgroup, slot, *, keys_down: bool):
    """(HALF, BLOCK): the mask, own tokens down and a block's across."""
    own_tags, streamed_tags = smem.own_tags.at[warpgroup], (smem.streamed_positions, smem.streamed_documents)
    position, document = (blocks.down(plgpu.load(own_tags.at[i], layout=DOWN), BLOCK) for i in range(2))
    streamed_position, streamed_document = (
        blocks.across(plgpu.load(tags.at[slot], layout=ACROSS), HALF) for tags in streamed_tags
    )
    same = document == streamed_document
    return same & ((position <= streamed_position) if keys_down else (position >= streamed_position))


def _load_streamed_tags(inputs: _Inputs, smem: _Scratch, b, tokens, slot):
    for array, target in zip(inputs.streamed_tags, (smem.streamed_positions, smem.streamed_documents), strict=True):
        plgpu.copy_gmem_to_smem(array.at[b, tokens], target.at[slot], smem.full.at[slot])


def _load_own(inputs: _Inputs, smem: _Scratch, warpgroup, copies, b, own):
    """`copies` are pairs: what is to be read, and the array in shared memory that has a part for each warpgroup."""
    full = smem.own_full.at[warpgroup]
    for source, target in copies:
        plgpu.copy_gmem_to_smem(source, target.at[warpgroup], full)
    for i in range(2):
        plgpu.copy_gmem_to_smem(inputs.own_tags[i].at[b, own], smem.own_tags.at[warpgroup, i], full)
    plgpu.barrier_wait(full)


def _key_program(heads: int, inputs: _Inputs, dk_gmem, dv_gmem, smem: _Scratch):
    kv_head, (b, t) = lax.axis_index("head"), blocks.place(inputs.order, inputs.spans.shape[2])
    span = blocks.Span.of(inputs.spans, b, t)
    H = inputs.k.shape[3]
    scale = 1 / math.sqrt(H)

    def load():
        def fill(step, slot):
            n = kv_head * heads + lax.div(step, span.steps)
            tokens = pl.ds((span.first + lax.rem(step, span.steps)) * BLOCK, BLOCK)
            _load_streamed_tags(inputs, smem, b, tokens, slot)
            full = smem.full.at[slot]
            for array, target in ((inputs.q, smem.q), (inputs.d, smem.d)):
                plgpu.copy_gmem_to_smem(array.at[b, tokens, n], target.at[slot], full)
            for array, target in ((inputs.lse, smem.lse), (inputs.delta, smem.delta)):
                plgpu.copy_gmem_to_smem(array.at[b, n, tokens], target.at[slot], full)

        blocks.stream(span.steps * heads, STAGES, (smem.free,), fill)

    def compute(warpgroup):
        own = pl.ds(t * TILE + warpgroup * HALF, HALF)
        copies = (inputs.k.at[b, own, kv_head], smem.k), (inputs.v.at[b, own, kv_head], smem.v)
        _load_own(inputs, smem, warpgroup, copies, b, own)
        k, v = smem.k.at[warpgroup], smem.v.at[warpgroup]

        def step(head, block, carry, *, masked: bool):
            dk, dv = carry
            slot = lax.rem(head * span.steps + block - span.first, jnp.int32(STAGES))
            plgpu.barrier_wait(smem.full.at[slot])
            q, d = smem.q.at[slot], smem.d.at[slot]
            lse, delta = (plgpu.load(x.at[slot], layout=ACROSS) for x in (smem.lse, smem.delta))
            logits, d_weights = blocks.products((k, q.transpose((1, 0))), (v, d.transpose((1, 0))))
            logits = logits * (scale * math.log2(math.e)) - blocks.across(lse * math.log2(math.e), HALF)
            if masked:
                logits = jnp.where(_visible(smem, warpgroup, slot, keys_down=True), logits, jnp.float32(blocks.LOW))
            weights = jnp.exp2(logits)
            dv = blocks.add_product(dv, weights.astype(jnp.bfloat16), d)
            d_logits = weights * (d_weights - blocks.across(delta, HALF))
            dk = blocks.add_product(dk, d_logits.astype(jnp.bfloat16), q)
            plgpu.barrier_arrive(smem.free.at[slot])
            return dk, dv

        def one_head(head, carry):
            return span.walk(functools.partial(step, head), carry)

        dk, dv = lax.fori_loop(0, heads, one_head, (blocks.zeros(HALF, H), blocks.zeros(HALF, H)))
        blocks.leave(dk * scale, dk_gmem.at[b, own, kv_head], k)
        blocks.leave(dv, dv_gmem.at[b, own, kv_head], v)
        plgpu.wait_smem_to_gmem(0)

    blocks.compute_and_load(compute, load)


def _query_program(heads: int, inputs: _Inputs, dq_gmem, smem: _Scratch):
    n, (b, t) = lax.axis_index("head"), blocks.place(inputs.order, inputs.spans.shape[2])
    span = blocks.Span.of(inputs.spans, b, t)
    kv_head = lax.div(n, jnp.int32(heads))
    H = inputs.q.shape[3]
    scale = 1 / math.sqrt(H)

    def load():
        def fill(step, slot):
            tokens = pl.ds((span.first + step) * BLOCK, BLOCK)
            _load_streamed_tags(inputs, smem, b, tokens, slot)
            for array, target in ((inputs.k, smem.k), (inputs.v, smem.v)):
                plgpu.copy_gmem_to_smem(array.at[b, tokens, kv_head], target.at[slot], smem.full.at[slot])

        blocks.stream(span.steps, STAGES, (smem.free,), fill)

    def compute(warpgroup):
        own = pl.ds(t * TILE + warpgroup * HALF, HALF)
        copies = [(inputs.q.at[b, own, n], smem.q), (inputs.d.at[b, own, n], smem.d)]
        copies += [(inputs.lse.at[b, n, own], smem.lse), (inputs.delta.at[b, n, own], smem.delta)]
        _load_own(inputs, smem, warpgroup, copies, b, own)
        q, d = smem.q.at[warpgroup], smem.d.at[warpgroup]
        lse, delta = (plgpu.load(x.at[warpgroup], layout=DOWN) for x in (smem.lse, smem.delta))
        lse = lse * math.log2(math.e)

        def step(block, dq, *, masked: bool):
            slot = lax.rem(block - span.first, jnp.int32(STAGES))
            plgpu.barrier_wait(smem.full.at[slot])
            k, v = smem.k.at[slot], smem.v.at[slot]
            logits, d_weights = blocks.products((q, k.transpose((1, 0))), (d, v.transpose((1, 0))))
            logits = logits * (scale * math.log2(math.e)) - blocks.down(lse, BLOCK)
            if masked:
                logits = jnp.where(_visible(smem, warpgroup, slot, keys_down=False), logits, jnp.float32(blocks.LOW))
            d_logits = jnp.exp2(logits) * (d_weights - blocks.down(delta, BLOCK))
            dq = blocks.add_product(dq, d_logits.astype(jnp.bfloat16), k)
            plgpu.barrier_arrive(smem.free.at[slot])
            return dq

        dq = span.walk(step, blocks.zeros(HALF, H))
        blocks.leave(dq * scale, dq_gmem.at[b, own, n], q)
        plgpu.wait_smem_to_gmem(0)

    blocks.compute_and_load(compute, load)
