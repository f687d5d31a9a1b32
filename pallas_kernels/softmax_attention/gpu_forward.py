"""Softmax attention on Hopper, forward: 128 queries of one head an item, keys and values streamed past them.

A program takes its items one after the other: the loader streams over an item's end into the next one, so that short
documents cost no start of a program each.

The softmax is the online one (Milakov and Gimelshein, arXiv 1805.02867), as in FlashAttention: a row's largest logit so
far and its sum, both rescaled when a larger one comes. The two warpgroups take turns, as in FlashAttention-3 (arXiv
2407.08608): while one has the matrix unit the other has its softmax.
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
from pallas_kernels.softmax_attention.gpu_blocks import ACROSS, DOWN, HALF, LOW, TILE
from pallas_kernels.softmax_attention.masking import Spans, longest_first
from pallas_kernels.varying import vary_alike

KEYS = 128  # of a block
STAGES = 2
QUERIES = 2  # items whose queries are there


class _Inputs(NamedTuple):
    """What the programs read."""

    k: jax.Ref  # bfloat16 (B, T, K, H)
    key_tags: tuple[jax.Ref, jax.Ref]  # positions and document ids, int32 (B, T)
    order: jax.Ref  # int32 (B * S / TILE,), `masking.longest_first`
    query_tags: tuple[jax.Ref, jax.Ref]  # positions and document ids, int32 (B, S)
    q: jax.Ref  # bfloat16 (B, S, N, H)
    spans: jax.Ref  # int32 (4, B, S / TILE), `masking.key_spans`
    v: jax.Ref  # bfloat16 (B, T, K, H)


class _Scratch(NamedTuple):
    """A program's shared memory, in the order it lies there. A slot of the ring has a block of keys, their tags and
    values; each of the two warpgroups has the queries of this item and of the next, QUERIES in all.
    """

    k: jax.Ref  # bfloat16 (STAGES, KEYS, H)
    k_free: jax.Ref  # barriers (STAGES,): both warpgroups have left the slot's keys and their tags
    k_full: jax.Ref  # barriers (STAGES,): the slot's keys, positions and document ids have arrived
    lse: jax.Ref  # float32 (2, HALF): of each warpgroup's queries, on its way out
    query_tags: jax.Ref  # int32 (QUERIES, 2, 2, HALF): of each warpgroup's queries the positions, the document ids
    key_positions: jax.Ref  # int32 (STAGES, KEYS)
    q: jax.Ref  # bfloat16 (QUERIES, 2, HALF, H): each warpgroup's queries, later its result on its way out
    q_free: jax.Ref  # barriers (QUERIES,): both warpgroups' results have left
    q_full: jax.Ref  # barriers (QUERIES,): both warpgroups' queries, positions and document ids have arrived
    key_documents: jax.Ref  # int32 (STAGES, KEYS)
    turn: jax.Ref  # barrier: both warpgroups have come to where one passes the matrix unit on
    v: jax.Ref  # bfloat16 (STAGES, KEYS, H)
    v_free: jax.Ref  # barriers (STAGES,): both warpgroups have left the slot's values
    v_full: jax.Ref  # barriers (STAGES,): the slot's values have arrived


def attend(query, key, value, query_tags, key_tags, spans: Spans, out_dtype):
    """S a multiple of TILE, T of KEYS; padding has document id -1 among queries, -2 among keys.

    Args:
      query_tags, key_tags: (positions, document ids), int32 (B, S), (B, T).
      spans: `masking.key_spans` in blocks of KEYS.

    Returns:
      (out (B, S, N, H) in `out_dtype`, lse (B, N, S) float32: the logsumexp; the smallest finite float32 for queries
      that see nothing, whose out is 0).
    """
    B, S, N, H = query.shape
    vary = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(query).mat)
    items = N * B * (S // TILE)
    programs = min(items, blocks.MULTIPROCESSORS)
    kernel = plgpu.kernel(
        functools.partial(_program, items, programs),
        out_type=[vary((B, S, N, H), out_dtype), vary((B, N, S), jnp.float32)],
        scratch_types=[_scratch(H)],
        grid=(programs,),
        grid_names=("program",),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
    # A block at least: a warpgroup that has none would wait for queries that the other, half a step behind, holds up.
    spans = spans._replace(end=jnp.maximum(spans.end, 1))
    order, table = longest_first(spans), jnp.stack(spans)
    inputs = _Inputs(k=key, key_tags=key_tags, order=order, query_tags=query_tags, q=query, spans=table, v=value)
    with declared.flops(2 * 2 * B * N * S * key.shape[1] * H):
        out, lse = kernel(inputs)
    return vary_alike(query, out, lse)[1:]


def _scratch(H: int) -> _Scratch:
    return _Scratch(
        k=blocks.tile(STAGES, KEYS, H),
        k_free=plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
        k_full=plgpu.Barrier(num_arrivals=3, num_barriers=STAGES),
        lse=plgpu.SMEM((2, HALF), jnp.float32),
        query_tags=plgpu.SMEM((QUERIES, 2, 2, HALF), jnp.int32),
        key_positions=plgpu.SMEM((STAGES, KEYS), jnp.int32),
        q=blocks.tile(QUERIES, 2, HALF, H),
        q_free=plgpu.Barrier(num_arrivals=2, num_barriers=QUERIES),
        q_full=plgpu.Barrier(num_arrivals=6, num_barriers=QUERIES),
        key_documents=plgpu.SMEM((STAGES, KEYS), jnp.int32),
        turn=plgpu.Barrier(num_arrivals=2),
        v=blocks.tile(STAGES, KEYS, H),
        v_free=plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
        v_full=plgpu.Barrier(num_barriers=STAGES),
    )


class _Item(NamedTuple):
    """What a program has to do with 128 queries of one head, and where in its work that stands."""

    b: jax.Array
    n: jax.Array
    t: jax.Array  # the tile of queries
    span: blocks.Span
    number: jax.Array | int = 0  # of this program's items
    done: jax.Array | int = 0  # blocks of the items before

    @property
    def steps(self):
        return self.span.steps

    @property
    def queries(self):
        return [pl.ds(self.t * TILE + half * HALF, HALF) for half in range(2)]


def _program(items: int, programs: int, inputs: _Inputs, out_gmem, lse_gmem, smem: _Scratch):
    heads, kv_heads, tiles = inputs.q.shape[2], inputs.k.shape[2], inputs.spans.shape[2]

    def item_of(index) -> _Item:
        """Items beside each other are heads of the same queries: what they read is in L2."""
        b, t = blocks.place(inputs.order, lax.div(index, jnp.int32(heads)), tiles)
        return _Item(b, lax.rem(index, jnp.int32(heads)), t, blocks.Span.of(inputs.spans, b, t))

    def each(body):
        blocks.each_item(
            items, programs, item_of, lambda number, item, done: body(item._replace(number=number, done=done))
        )

    def load_item(item: _Item):
        buffer = lax.rem(item.number, jnp.int32(QUERIES))

        @pl.when(item.number >= QUERIES)
        def _():
            plgpu.barrier_wait(smem.q_free.at[buffer])

        full = smem.q_full.at[buffer]
        for half, queries in enumerate(item.queries):
            plgpu.copy_gmem_to_smem(inputs.q.at[item.b, queries, item.n], smem.q.at[buffer, half], full)
            for i in range(2):
                tags = inputs.query_tags[i].at[item.b, queries]
                plgpu.copy_gmem_to_smem(tags, smem.query_tags.at[buffer, half, i], full)
        kv_head = lax.div(item.n, jnp.int32(heads // kv_heads))

        def fill(step, slot):
            keys = pl.ds((item.span.first + step) * KEYS, KEYS)
            k_full, v_full = smem.k_full.at[slot], smem.v_full.at[slot]
            for array, target in zip(inputs.key_tags, (smem.key_positions, smem.key_documents), strict=True):
                plgpu.copy_gmem_to_smem(array.at[item.b, keys], target.at[slot], k_full)
            plgpu.copy_gmem_to_smem(inputs.k.at[item.b, keys, kv_head], smem.k.at[slot], k_full)
            plgpu.copy_gmem_to_smem(inputs.v.at[item.b, keys, kv_head], smem.v.at[slot], v_full)

        blocks.stream(item.span.steps, STAGES, (smem.k_free, smem.v_free), fill, item.done)

    def compute(warpgroup):
        # The second warpgroup is half a step behind the first, over the ends of items too.
        pl.when(warpgroup == 1)(lambda: _pass_on(smem))
        each(functools.partial(_compute, out_gmem, lse_gmem, smem, warpgroup))
        pl.when(warpgroup == 0)(lambda: _pass_on(smem))
        plgpu.wait_smem_to_gmem(0)

    blocks.compute_and_load(compute, lambda: each(load_item))


def _pass_on(smem: _Scratch):
    plgpu.barrier_arrive(smem.turn)
    plgpu.barrier_wait(smem.turn)


def _compute(out_gmem, lse_gmem, smem: _Scratch, warpgroup, item: _Item):
    buffer, span = lax.rem(item.number, jnp.int32(QUERIES)), item.span
    queries = pl.ds(item.t * TILE + warpgroup * HALF, HALF)
    q, own_tags = smem.q.at[buffer, warpgroup], smem.query_tags.at[buffer, warpgroup]
    plgpu.barrier_wait(smem.q_full.at[buffer])
    H = q.shape[1]
    scale = math.log2(math.e) / math.sqrt(H)

    def step(block, carry, *, masked: bool):
        out, peak, total = carry
        slot = lax.rem(item.done + block - span.first, jnp.int32(STAGES))
        pl.when((block == span.end - 1) & (item.number > 0))(let_next_in)
        plgpu.barrier_wait(smem.k_full.at[slot])
        (logits,) = blocks.products((q, smem.k.at[slot].transpose((1, 0))), then=lambda: _pass_on(smem))
        if masked:
            position, document = (plgpu.load(own_tags.at[i], layout=DOWN) for i in range(2))
            tags = smem.key_positions, smem.key_documents
            key_position, key_document = (plgpu.load(x.at[slot], layout=ACROSS) for x in tags)
            visible = blocks.down(document, KEYS) == blocks.across(key_document, HALF)
            visible &= blocks.down(position, KEYS) >= blocks.across(key_position, HALF)
            logits = jnp.where(visible, logits, jnp.float32(2 * LOW))
        plgpu.barrier_arrive(smem.k_free.at[slot])
        new_peak = jnp.maximum(peak, logits.max(axis=1))
        rescale = jnp.exp2((peak - new_peak) * scale)
        weights = jnp.exp2(logits * scale - blocks.down(new_peak * scale, KEYS))
        total = total * rescale + weights.sum(axis=1)
        out = out * blocks.down(rescale, H)
        weights = weights.astype(jnp.bfloat16)
        out, total, new_peak, weights = lax.optimization_barrier((out, total, new_peak, weights))
        plgpu.barrier_arrive(smem.turn)
        plgpu.barrier_wait(smem.v_full.at[slot])
        plgpu.barrier_wait(smem.turn)
        out = blocks.add_product(out, weights, smem.v.at[slot])
        plgpu.barrier_arrive(smem.v_free.at[slot])
        return out, new_peak, total

    def let_next_in():
        """Once the result of the item before has left its queries' place, which those of the next one take."""
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        plgpu.barrier_arrive(smem.q_free.at[1 - buffer])

    peak = plgpu.layout_cast(jnp.full((HALF,), LOW, jnp.float32), DOWN)
    out, peak, total = span.walk(step, (blocks.zeros(HALF, H), peak, blocks.zeros(HALF)))
    sees_any = total > 0
    total = jnp.where(sees_any, total, jnp.float32(1))
    least = jnp.float32(jnp.finfo(jnp.float32).min)
    smem.lse.at[warpgroup][...] = jnp.where(sees_any, (peak * scale + jnp.log2(total)) * math.log(2), least)
    lse = smem.lse.at[warpgroup], lse_gmem.at[item.b, item.n, queries]
    blocks.leave(out * blocks.down(1 / total, H), out_gmem.at[item.b, queries, item.n], q, lse)
