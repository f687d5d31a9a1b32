"""Softmax attention on Hopper, forward: 128 or 192 queries of one head an item, keys and values streamed past them.

A program takes its items one after the other: the loader streams over an item's end into the next one, so that short
documents cost no start of a program each.

The softmax is the online one (Milakov and Gimelshein, arXiv 1805.02867), as in FlashAttention: a row's largest logit so
far and its sum, both rescaled when a larger one comes. The warpgroups take turns, as in FlashAttention-3 (arXiv
2407.08608): while one has the matrix unit the others have their softmax.
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
from pallas_kernels.softmax_attention.gpu_blocks import ACROSS, DOWN, HALF, LOW
from pallas_kernels.softmax_attention.gpu_items import Item, PairSpan, each_item
from pallas_kernels.softmax_attention.masking import Work
from pallas_kernels.varying import vary_alike

KEYS = 128  # of a block
STAGES = 2


class _Inputs(NamedTuple):
    """What the programs read."""

    k: jax.Ref  # bfloat16 (B, T, K, H)
    key_tags: tuple[jax.Ref, jax.Ref]  # positions and document ids, int32 (B, T)
    query_tags: tuple[jax.Ref, jax.Ref]  # positions and document ids, int32 (B, S)
    q: jax.Ref  # bfloat16 (B, S, N, H)
    v: jax.Ref  # bfloat16 (B, T, K, H)
    work: Work  # of the queries


class _Scratch(NamedTuple):
    """A program's shared memory, in the order it lies there. A slot of the ring has a block of keys, their tags and
    values; of an item's queries each strip has a part, and each computing warpgroup one of what leaves.
    """

    k: jax.Ref  # bfloat16 (STAGES, KEYS, H)
    k_free: jax.Ref  # barriers (STAGES,): all computing warpgroups have left the slot's keys and their tags
    k_full: jax.Ref  # barriers (STAGES,): the slot's keys, positions and document ids have arrived
    lse: jax.Ref  # float32 (strips, HALF), on its way out
    query_tags: jax.Ref  # int32 (strips, 2, HALF): the positions, the document ids
    key_positions: jax.Ref  # int32 (STAGES, KEYS)
    q: jax.Ref  # bfloat16 (strips, HALF, H)
    q_free: jax.Ref  # barrier: all computing warpgroups have their queries in registers
    q_full: jax.Ref  # barrier: the item's queries, positions and document ids have arrived
    key_documents: jax.Ref  # int32 (STAGES, KEYS)
    staged: jax.Ref  # bfloat16 (strips, HALF, H): the output on its way out
    turn: jax.Ref  # barriers (strips,): the warpgroup before has passed the matrix unit on
    v: jax.Ref  # bfloat16 (STAGES, KEYS, H)
    v_free: jax.Ref  # barriers (STAGES,): all computing warpgroups have left the slot's values
    v_full: jax.Ref  # barriers (STAGES,): the slot's values have arrived


def attend(query, key, value, query_tags, key_tags, work: Work, out_dtype):
    """S a multiple of HALF, T of KEYS; padding has document id -1 among queries, -2 among keys.

    Args:
      query_tags, key_tags: (positions, document ids), int32 (B, S), (B, T).
      work: of `masking.key_spans`, both sides in blocks of HALF.

    Returns:
      (out (B, S, N, H) in `out_dtype`, lse (B, N, S) float32: the logsumexp; the smallest finite float32 for queries
      that see nothing, whose out is 0).
    """
    B, S, N, H = query.shape
    vary = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(query).mat)
    strips = len(work.strips)
    items = N * B * work.begin.shape[1]
    programs = min(items, blocks.MULTIPROCESSORS)
    kernel = plgpu.kernel(
        functools.partial(_program, items, programs),
        out_type=[vary((B, S, N, H), out_dtype), vary((B, N, S), jnp.float32)],
        scratch_types=[_scratch(H, strips)],
        grid=(programs,),
        grid_names=("program",),
        num_threads=strips + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
    inputs = _Inputs(k=key, key_tags=key_tags, query_tags=query_tags, q=query, v=value, work=work)
    with declared.flops(2 * 2 * B * N * S * key.shape[1] * H):
        out, lse = kernel(inputs)
    return vary_alike(query, out, lse)[1:]


def _scratch(H: int, strips: int) -> _Scratch:
    return _Scratch(
        k=blocks.tile(STAGES, KEYS, H),
        k_free=plgpu.Barrier(num_arrivals=strips, num_barriers=STAGES),
        k_full=plgpu.Barrier(num_arrivals=3, num_barriers=STAGES),
        lse=plgpu.SMEM((strips, HALF), jnp.float32),
        query_tags=plgpu.SMEM((strips, 2, HALF), jnp.int32),
        key_positions=plgpu.SMEM((STAGES, KEYS), jnp.int32),
        q=blocks.tile(strips, HALF, H),
        q_free=plgpu.Barrier(num_arrivals=strips),
        q_full=plgpu.Barrier(num_arrivals=3 * strips),
        key_documents=plgpu.SMEM((STAGES, KEYS), jnp.int32),
        staged=blocks.tile(strips, HALF, H),
        turn=plgpu.Barrier(num_barriers=strips),
        v=blocks.tile(STAGES, KEYS, H),
        v_free=plgpu.Barrier(num_arrivals=strips, num_barriers=STAGES),
        v_full=plgpu.Barrier(num_barriers=STAGES),
    )


def _program(items: int, programs: int, inputs: _Inputs, out_gmem, lse_gmem, smem: _Scratch):
    heads, kv_heads, strips = inputs.q.shape[2], inputs.k.shape[2], len(inputs.work.strips)

    def each(warpgroup, body):
        each_item(
            inputs.work, heads, items, programs, warpgroup, body, functools.partial(PairSpan.of, passing=strips > 2)
        )

    def load_item(item: Item):
        @pl.when(item.number > 0)
        def _():
            plgpu.barrier_wait(smem.q_free)

        for strip in range(item.strips):
            queries = item.tokens(strip, inputs.q.shape[1])
            plgpu.copy_gmem_to_smem(inputs.q.at[item.b, queries, item.head], smem.q.at[strip], smem.q_full)
            for i in range(2):
                tags = inputs.query_tags[i].at[item.b, queries]
                plgpu.copy_gmem_to_smem(tags, smem.query_tags.at[strip, i], smem.q_full)
        kv_head = lax.div(item.head, jnp.int32(heads // kv_heads))

        def tokens(step):
            return pl.ds((item.span.begin + step) * KEYS, KEYS)

        def fill_keys(step, slot):
            full = smem.k_full.at[slot]
            for array, target in zip(inputs.key_tags, (smem.key_positions, smem.key_documents), strict=True):
                plgpu.copy_gmem_to_smem(array.at[item.b, tokens(step)], target.at[slot], full)
            plgpu.copy_gmem_to_smem(inputs.k.at[item.b, tokens(step), kv_head], smem.k.at[slot], full)

        def fill_values(step, slot):
            values = inputs.v.at[item.b, tokens(step), kv_head]
            plgpu.copy_gmem_to_smem(values, smem.v.at[slot], smem.v_full.at[slot])

        blocks.stream(item.span.steps, STAGES, [(smem.k_free, fill_keys), (smem.v_free, fill_values)], item.done)

    def compute(warpgroup):
        # The first turn is the first's.
        pl.when(warpgroup == strips - 1)(lambda: plgpu.barrier_arrive(smem.turn.at[0]))
        each(warpgroup, functools.partial(_compute, out_gmem, lse_gmem, smem, warpgroup))
        pl.when(warpgroup == 0)(lambda: plgpu.barrier_wait(smem.turn.at[0]))
        plgpu.wait_smem_to_gmem(0)

    blocks.compute_and_load(compute, lambda: each(0, load_item), strips)


def _compute(out_gmem, lse_gmem, smem: _Scratch, warpgroup, item: Item):
    span, S = item.span, out_gmem.shape[1]
    queries = item.tokens(item.strip, S)
    plgpu.barrier_wait(smem.q_full)
    # A left operand in registers: its place is free for the next item's queries at once.
    q = plgpu.load(smem.q.at[item.strip], layout=plgpu.Layout.WGMMA)
    own_tags = [plgpu.load(smem.query_tags.at[item.strip, i], layout=DOWN) for i in range(2)]
    plgpu.barrier_arrive(smem.q_free)
    H = q.shape[1]
    scale = math.log2(math.e) / math.sqrt(H)

    def take_turn():
        plgpu.barrier_wait(smem.turn.at[warpgroup])

    def pass_turn():
        plgpu.barrier_arrive(smem.turn.at[lax.rem(warpgroup + 1, jnp.int32(item.strips))])

    def pass_last_turn(block):
        pl.when(block == span.stop - 1)(pass_turn)

    def step(block, carry, *, masked: bool, num_keys: int = KEYS):
        slot, part = lax.rem(item.done + block - span.begin, jnp.int32(STAGES)), pl.ds(0, num_keys)
        plgpu.barrier_wait(smem.k_full.at[slot])
        (logits,) = blocks.products((q, smem.k.at[slot, part].transpose((1, 0))), then=pass_turn)
        if masked:
            key_tags = (smem.key_positions, smem.key_documents)
            key_tags = [plgpu.load(x.at[slot, part], layout=ACROSS) for x in key_tags]
            logits = jnp.where(blocks.visible(own_tags, key_tags), logits, jnp.float32(2 * LOW))
        plgpu.barrier_arrive(smem.k_free.at[slot])
        weights, (out, peak, total) = blocks.online_softmax(logits, carry, scale)
        plgpu.barrier_wait(smem.v_full.at[slot])
        take_turn()
        out = blocks.add_product(out, weights, smem.v.at[slot, part], then=functools.partial(pass_last_turn, block))
        plgpu.barrier_arrive(smem.v_free.at[slot])
        return out, peak, total

    def idle(block):
        slot = lax.rem(item.done + block - span.begin, jnp.int32(STAGES))
        plgpu.barrier_wait(smem.k_full.at[slot])
        pass_turn()
        plgpu.barrier_arrive(smem.k_free.at[slot])
        plgpu.barrier_wait(smem.v_full.at[slot])
        take_turn()
        pass_last_turn(block)
        plgpu.barrier_arrive(smem.v_free.at[slot])

    peak = plgpu.layout_cast(jnp.full((HALF,), LOW, jnp.float32), DOWN)
    take_turn()
    out, peak, total = span.walk(step, (blocks.zeros(HALF, H), peak, blocks.zeros(HALF)), idle)
    sees_any = total > 0
    total = jnp.where(sees_any, total, jnp.float32(1))
    least = jnp.float32(jnp.finfo(jnp.float32).min)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    smem.lse.at[warpgroup][...] = jnp.where(sees_any, (peak * scale + jnp.log2(total)) * math.log(2), least)
    lse = smem.lse.at[warpgroup], lse_gmem.at[item.b, item.head, queries]
    out = out * blocks.down(1 / total, H)
    blocks.leave(out, out_gmem.at[item.b, queries, item.head], smem.staged.at[warpgroup], lse, where=item.is_in(S))
