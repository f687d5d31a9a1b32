"""Softmax attention on Hopper, backward, in two passes, as in FlashAttention: neither holds a (queries, keys) matrix.

    P = exp(Q K' - lse)     dS = P * (dO V' - delta)     dV = P' dO     dK = dS' Q / sqrt(H)     dQ = dS K / sqrt(H)

`key_gradients`: 128 keys of one head an item, the queries of all heads that read them streamed past. The logits stand
with keys down, so that P' and dS' are left operands as they are; an item is long and has a program of its own.
`query_gradient`: 128 queries, keys streamed past; a program takes its items one after the other, as forward.
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
QUERIES = 2  # items of `query_gradient` whose queries are there


class _Inputs(NamedTuple):
    """What the programs read. An item's own tokens are keys in `key_gradients`, queries in `query_gradient`; the tokens
    of the other side are streamed past them.
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

    What is of the own side is (items at hand, 2, HALF, ...), a part for each warpgroup; what is streamed is (STAGES,
    BLOCK, ...), a part for each slot of the ring.
    """

    d: jax.Ref  # bfloat16 (..., H), of the queries' side
    delta: jax.Ref  # float32, of the queries' side
    free: jax.Ref  # barriers (STAGES,): both warpgroups have left the slot
    full: jax.Ref  # barriers (STAGES,): the slot's arrays have arrived
    k: jax.Ref  # bfloat16 (..., H), of the keys' side
    lse: jax.Ref  # float32, of the queries' side
    own_tags: jax.Ref  # int32 (items at hand, 2, 2, HALF): of each warpgroup's tokens the positions, the document ids
    own_free: jax.Ref  # barriers (items at hand,): both warpgroups' results have left
    own_full: jax.Ref  # barriers (items at hand,): both warpgroups' own arrays have arrived
    streamed_positions: jax.Ref  # int32
    q: jax.Ref  # bfloat16 (..., H), of the queries' side
    streamed_documents: jax.Ref  # int32
    v: jax.Ref  # bfloat16 (..., H), of the keys' side


class _Item(NamedTuple):
    """What a program has to do with 128 own tokens of one head, and where in its work that stands."""

    b: jax.Array
    head: jax.Array
    t: jax.Array  # the own side's tile
    span: blocks.Span
    number: jax.Array  # of this program's items
    done: jax.Array  # blocks of the items before

    def own(self, warpgroup):
        return pl.ds(self.t * TILE + warpgroup * HALF, HALF)

    def buffer(self, smem: _Scratch):
        return lax.rem(self.number, jnp.int32(smem.own_tags.shape[0]))


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
    items = K * B * (T // TILE)
    kernel = _kernel(
        functools.partial(_key_program, items, N // K),
        [vary(key.shape, out_dtype)] * 2,
        _scratch(H, queries=(STAGES, BLOCK), keys=(1, 2, HALF), own_copies=2 * 4, streamed_copies=6),
        programs=items,
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
    items = N * B * (S // TILE)
    programs = min(items, blocks.MULTIPROCESSORS)
    kernel = _kernel(
        functools.partial(_query_program, items, programs, N // key.shape[2]),
        [vary(query.shape, out_dtype)],
        _scratch(H, queries=(QUERIES, 2, HALF), keys=(STAGES, BLOCK), own_copies=2 * 6, streamed_copies=4),
        programs=programs,
    )
    inputs = _inputs(arrays, query_tags, key_tags, spans)
    with declared.flops(3 * 2 * B * N * S * key.shape[1] * H):
        (gradient,) = kernel(inputs)
    return vary_alike(query, gradient)[1]


def _scratch(H: int, *, queries, keys, own_copies: int, streamed_copies: int) -> _Scratch:
    """queries, keys: shapes before H of the two sides' arrays. A copy is one array's: with a query's or a key's, two of
    the tags; queries have q, d, lse and delta, keys k and v.
    """
    buffers = max(queries, keys, key=len)[0]
    return _Scratch(
        d=blocks.tile(*queries, H),
        delta=plgpu.SMEM(queries, jnp.float32),
        free=plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
        full=plgpu.Barrier(num_arrivals=streamed_copies, num_barriers=STAGES),
        k=blocks.tile(*keys, H),
        lse=plgpu.SMEM(queries, jnp.float32),
        own_tags=plgpu.SMEM((buffers, 2, 2, HALF), jnp.int32),
        own_free=plgpu.Barrier(num_arrivals=2, num_barriers=buffers),
        own_full=plgpu.Barrier(num_arrivals=own_copies, num_barriers=buffers),
        streamed_positions=plgpu.SMEM((STAGES, BLOCK), jnp.int32),
        q=blocks.tile(*queries, H),
        streamed_documents=plgpu.SMEM((STAGES, BLOCK), jnp.int32),
        v=blocks.tile(*keys, H),
    )


def _kernel(program, out_type, scratch: _Scratch, *, programs: int):
    return plgpu.kernel(
        program,
        out_type=out_type,
        scratch_types=[scratch],
        grid=(programs,),
        grid_names=("program",),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )


def _inputs(arrays, own_tags, streamed_tags, spans: Spans) -> _Inputs:
    q, k, v, d, lse, delta = arrays
    tags = {"streamed_tags": streamed_tags, "own_tags": own_tags}
    order, table = longest_first(spans), jnp.stack(spans)
    return _Inputs(d=d, delta=delta, k=k, lse=lse, order=order, q=q, spans=table, v=v, **tags)


def _each(inputs: _Inputs, items: int, programs: int, heads: int, steps_of, body):
    """body(item) for every item of this program; items beside each other are heads of the same tokens."""
    tiles = inputs.spans.shape[2]

    def item_of(index, number=0, done=0) -> _Item:
        b, t = blocks.place(inputs.order, lax.div(index, jnp.int32(heads)), tiles)
        return _Item(b, lax.rem(index, jnp.int32(heads)), t, blocks.Span.of(inputs.spans, b, t), number, done)

    def steps(index):
        return steps_of(item_of(index).span)

    blocks.each_item(items, programs, steps, lambda number, index, done: body(item_of(index, number, done)))


def _visible(smem: _Scratch, own_tags, slot, *, keys_down: bool):
    """(HALF, BLOCK): the mask, own tokens down and a block's across."""
    streamed_tags = (smem.streamed_positions, smem.streamed_documents)
    position, document = (blocks.down(plgpu.load(own_tags.at[i], layout=DOWN), BLOCK) for i in range(2))
    streamed_position, streamed_document = (
        blocks.across(plgpu.load(tags.at[slot], layout=ACROSS), HALF) for tags in streamed_tags
    )
    same = document == streamed_document
    return same & ((position <= streamed_position) if keys_down else (position >= streamed_position))


def _load_streamed_tags(inputs: _Inputs, smem: _Scratch, b, tokens, slot):
    for array, target in zip(inputs.streamed_tags, (smem.streamed_positions, smem.streamed_documents), strict=True):
        plgpu.copy_gmem_to_smem(array.at[b, tokens], target.at[slot], smem.full.at[slot])


def _load_own(inputs: _Inputs, smem: _Scratch, item: _Item, copies):
    """copies(own tokens): pairs of what is to be read, and the array in shared memory that has a place for it."""
    buffer, full = item.buffer(smem), smem.own_full.at[item.buffer(smem)]

    @pl.when(item.number >= smem.own_tags.shape[0])
    def _():
        plgpu.barrier_wait(smem.own_free.at[buffer])

    for half in range(2):
        for source, target in copies(item.own(half)):
            plgpu.copy_gmem_to_smem(source, target.at[buffer, half], full)
        for i in range(2):
            tags = inputs.own_tags[i].at[item.b, item.own(half)]
            plgpu.copy_gmem_to_smem(tags, smem.own_tags.at[buffer, half, i], full)


def _key_program(items: int, heads: int, inputs: _Inputs, dk_gmem, dv_gmem, smem: _Scratch):
    H = inputs.k.shape[3]
    scale = 1 / math.sqrt(H)

    def each(body):
        _each(inputs, items, items, inputs.k.shape[2], lambda span: span.steps * heads, body)

    def load_item(item: _Item):
        b, span = item.b, item.span
        _load_own(
            inputs,
            smem,
            item,
            lambda own: [(x.at[b, own, item.head], y) for x, y in ((inputs.k, smem.k), (inputs.v, smem.v))],
        )

        def fill(step, slot):
            n = item.head * heads + lax.div(step, span.steps)
            tokens = pl.ds((span.first + lax.rem(step, span.steps)) * BLOCK, BLOCK)
            _load_streamed_tags(inputs, smem, b, tokens, slot)
            full = smem.full.at[slot]
            for array, target in ((inputs.q, smem.q), (inputs.d, smem.d)):
                plgpu.copy_gmem_to_smem(array.at[b, tokens, n], target.at[slot], full)
            for array, target in ((inputs.lse, smem.lse), (inputs.delta, smem.delta)):
                plgpu.copy_gmem_to_smem(array.at[b, n, tokens], target.at[slot], full)

        blocks.stream(span.steps * heads, STAGES, (smem.free,), fill, item.done)

    def compute_item(warpgroup, item: _Item):
        span, buffer, own = item.span, item.buffer(smem), item.own(warpgroup)
        plgpu.barrier_wait(smem.own_full.at[buffer])
        k, v, own_tags = (x.at[buffer, warpgroup] for x in (smem.k, smem.v, smem.own_tags))

        def step(head, block, carry, *, masked: bool):
            dk, dv = carry
            slot = lax.rem(item.done + head * span.steps + block - span.first, jnp.int32(STAGES))
            plgpu.barrier_wait(smem.full.at[slot])
            q, d = smem.q.at[slot], smem.d.at[slot]
            lse, delta = (plgpu.load(x.at[slot], layout=ACROSS) for x in (smem.lse, smem.delta))
            logits, d_weights = blocks.products((k, q.transpose((1, 0))), (v, d.transpose((1, 0))))
            logits = logits * (scale * math.log2(math.e)) - blocks.across(lse * math.log2(math.e), HALF)
            if masked:
                logits = jnp.where(_visible(smem, own_tags, slot, keys_down=True), logits, jnp.float32(blocks.LOW))
            weights = jnp.exp2(logits)
            dv = blocks.add_product(dv, weights.astype(jnp.bfloat16), d)
            d_logits = weights * (d_weights - blocks.across(delta, HALF))
            dk = blocks.add_product(dk, d_logits.astype(jnp.bfloat16), q)
            plgpu.barrier_arrive(smem.free.at[slot])
            return dk, dv

        def one_head(head, carry):
            return span.walk(functools.partial(step, head), carry)

        dk, dv = lax.fori_loop(0, heads, one_head, (blocks.zeros(HALF, H), blocks.zeros(HALF, H)))
        blocks.leave(dk * scale, dk_gmem.at[item.b, own, item.head], k)
        blocks.leave(dv, dv_gmem.at[item.b, own, item.head], v)
        plgpu.wait_smem_to_gmem(0)

    blocks.compute_and_load(lambda warpgroup: each(functools.partial(compute_item, warpgroup)), lambda: each(load_item))


def _query_program(items: int, programs: int, heads: int, inputs: _Inputs, dq_gmem, smem: _Scratch):
    H = inputs.q.shape[3]
    scale = 1 / math.sqrt(H)

    def each(body):
        _each(inputs, items, programs, inputs.q.shape[2], lambda span: span.steps, body)

    def load_item(item: _Item):
        b, n, span = item.b, item.head, item.span
        kv_head = lax.div(n, jnp.int32(heads))

        def copies(own):
            wide = [(x.at[b, own, n], y) for x, y in ((inputs.q, smem.q), (inputs.d, smem.d))]
            return wide + [(x.at[b, n, own], y) for x, y in ((inputs.lse, smem.lse), (inputs.delta, smem.delta))]

        def fill(step, slot):
            tokens = pl.ds((span.first + step) * BLOCK, BLOCK)
            _load_streamed_tags(inputs, smem, b, tokens, slot)
            for array, target in ((inputs.k, smem.k), (inputs.v, smem.v)):
                plgpu.copy_gmem_to_smem(array.at[b, tokens, kv_head], target.at[slot], smem.full.at[slot])

        _load_own(inputs, smem, item, copies)
        blocks.stream(span.steps, STAGES, (smem.free,), fill, item.done)

    def compute_item(warpgroup, item: _Item):
        span, buffer, own = item.span, item.buffer(smem), item.own(warpgroup)
        plgpu.barrier_wait(smem.own_full.at[buffer])
        q, d, own_tags = (x.at[buffer, warpgroup] for x in (smem.q, smem.d, smem.own_tags))
        lse, delta = (plgpu.load(x.at[buffer, warpgroup], layout=DOWN) for x in (smem.lse, smem.delta))
        lse = lse * math.log2(math.e)

        def step(block, dq, *, masked: bool):
            slot = lax.rem(item.done + block - span.first, jnp.int32(STAGES))
            plgpu.barrier_wait(smem.full.at[slot])
            k, v = smem.k.at[slot], smem.v.at[slot]
            logits, d_weights = blocks.products((q, k.transpose((1, 0))), (d, v.transpose((1, 0))))
            logits = logits * (scale * math.log2(math.e)) - blocks.down(lse, BLOCK)
            if masked:
                logits = jnp.where(_visible(smem, own_tags, slot, keys_down=False), logits, jnp.float32(blocks.LOW))
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
