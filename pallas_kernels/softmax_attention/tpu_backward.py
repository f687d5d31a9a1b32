"""Softmax attention on TPUs, backward, in two passes; neither makes a (queries, keys) matrix in HBM.

    P = exp(Q K' - lse)     dS = P * (dO V' - delta)     dV = P' dO     dK = dS' Q / sqrt(H)     dQ = dS K / sqrt(H)

`key_gradients`: a block of keys of one head a program, the queries of all heads that read them streamed past, keys down
in the logits. `query_gradient`: a block of queries, keys streamed past.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.softmax_attention import tpu_blocks as blocks
from pallas_kernels.softmax_attention.masking import Tags, key_spans, query_spans
from pallas_kernels.softmax_attention.tpu_blocks import HIDDEN, LINES, dot

_HBM = pl.BlockSpec(memory_space=pl.ANY)


def key_gradients(arrays, query_tags: Tags, key_tags: Tags, out_dtype):
    """(dK, dV), (B, K, T, H) in `out_dtype`; arrays as `query_gradient`."""
    query, key, value, d_out, stats = arrays
    (B, N, S, H), (K, T) = query.shape, key.shape[1:3]
    query_block, key_block = blocks.block_of(S), blocks.block_of(T)
    vary = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(query).mat)
    return blocks.call(
        functools.partial(_key_program, N // K),
        [(vary((B, K, T, H), out_dtype), blocks.own(key_block, H))] * 2,
        query_spans(query_tags, query_block, key_tags, key_block),
        (key, value, blocks.tag_lines(key_tags), query, d_out, stats, blocks.tag_lines(query_tags)),
        [*[blocks.own(key_block, H)] * 2, blocks.own_lines(key_block, of_heads=False), *[_HBM] * 4],
        [
            pltpu.VMEM((2, query_block, H), query.dtype),
            pltpu.VMEM((2, query_block, H), d_out.dtype),
            pltpu.VMEM((2, LINES, query_block), jnp.float32),
            pltpu.VMEM((2, LINES, query_block), jnp.int32),
            pltpu.SemaphoreType.DMA((2, 4)),
            pltpu.VMEM((key_block, H), jnp.float32),
            pltpu.VMEM((key_block, H), jnp.float32),
        ],
        grid=(B, K, T // key_block),
        name="softmax_key_gradients",
        flops=4 * 2 * B * N * S * T * H,
    )


def query_gradient(arrays, query_tags: Tags, key_tags: Tags, out_dtype):
    """dQ, (B, N, S, H) in `out_dtype`.

    Args:
      arrays: query, key, value, d_out as in the forward pass, and (B, N, LINES, S) float32, whose lines are the
        logsumexp and the sum over H of d_out * out.
    """
    query, key, value, d_out, stats = arrays
    (B, N, S, H), (K, T) = query.shape, key.shape[1:3]
    query_block, key_block = blocks.block_of(S), blocks.block_of(T)
    vary = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(query).mat)
    (gradient,) = blocks.call(
        functools.partial(_query_program, N // K),
        [(vary((B, N, S, H), out_dtype), blocks.own(query_block, H))],
        key_spans(query_tags, query_block, key_tags, key_block),
        (query, d_out, stats, blocks.tag_lines(query_tags), key, value, blocks.tag_lines(key_tags)),
        [
            *[blocks.own(query_block, H)] * 2,
            blocks.own_lines(query_block, of_heads=True),
            blocks.own_lines(query_block, of_heads=False),
            *[_HBM] * 3,
        ],
        [
            pltpu.VMEM((2, key_block, H), key.dtype),
            pltpu.VMEM((2, key_block, H), value.dtype),
            pltpu.VMEM((2, LINES, key_block), jnp.int32),
            pltpu.SemaphoreType.DMA((2, 3)),
            pltpu.VMEM((query_block, H), jnp.float32),
        ],
        grid=(B, N, S // query_block),
        name="softmax_query_gradient",
        flops=3 * 2 * B * N * S * T * H,
    )
    return gradient


def _copies(sources, targets, semaphores, slot):
    for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
        yield pltpu.make_async_copy(source, target.at[slot], semaphores.at[slot, i])


def _key_program(
    group: int,
    spans_ref,
    k_ref,
    v_ref,
    own_tags_ref,
    q_hbm,
    d_hbm,
    stats_hbm,
    tags_hbm,
    dk_ref,
    dv_ref,
    q_ref,
    d_ref,
    stats_ref,
    tags_ref,
    semaphores,
    dk_sum,
    dv_sum,
):
    b, kv_head, query_block = pl.program_id(0), pl.program_id(1), q_ref.shape[1]
    scale = blocks.scale_of(k_ref.shape[1])
    dk_sum[...], dv_sum[...] = jnp.zeros_like(dk_sum), jnp.zeros_like(dv_sum)

    def copies(head, block, slot):
        n, tokens = kv_head * group + head, pl.ds(block * query_block, query_block)
        sources = (q_hbm.at[b, n, tokens], d_hbm.at[b, n, tokens], stats_hbm.at[b, n, :, tokens])
        sources += (tags_hbm.at[b, :, tokens],)
        return _copies(sources, (q_ref, d_ref, stats_ref, tags_ref), semaphores, slot)

    def step(_, slot, masked: bool):
        q, d, stats = q_ref[slot], d_ref[slot], stats_ref[slot]
        logits = dot(k_ref[...], q, 1, 1) * scale - stats[0:1]
        if masked:
            logits = jnp.where(blocks.visible(own_tags_ref[...], tags_ref[slot], keys_down=True), logits, HIDDEN)
        weights = jnp.exp(logits)
        d_logits = weights * (dot(v_ref[...], d, 1, 1) - stats[1:2])
        dv_sum[...] += dot(weights.astype(d.dtype), d, 1, 0)
        dk_sum[...] += dot(d_logits.astype(q.dtype), q, 1, 0)

    blocks.walk(spans_ref, copies, step, heads=group)
    dk_ref[...] = (dk_sum[...] * scale).astype(dk_ref.dtype)
    dv_ref[...] = dv_sum[...].astype(dv_ref.dtype)


def _query_program(
    group: int,
    spans_ref,
    q_ref,
    d_ref,
    stats_ref,
    own_tags_ref,
    k_hbm,
    v_hbm,
    tags_hbm,
    dq_ref,
    k_ref,
    v_ref,
    tags_ref,
    semaphores,
    dq_sum,
):
    b, n, key_block = pl.program_id(0), pl.program_id(1), k_ref.shape[1]
    scale = blocks.scale_of(q_ref.shape[1])
    dq_sum[...] = jnp.zeros_like(dq_sum)
    stats = stats_ref[...].T
    lse, delta = stats[:, 0:1], stats[:, 1:2]

    def copies(_, block, slot):
        tokens, kv_head = pl.ds(block * key_block, key_block), lax.div(n, group)
        sources = (k_hbm.at[b, kv_head, tokens], v_hbm.at[b, kv_head, tokens], tags_hbm.at[b, :, tokens])
        return _copies(sources, (k_ref, v_ref, tags_ref), semaphores, slot)

    def step(_, slot, masked: bool):
        k = k_ref[slot]
        logits = dot(q_ref[...], k, 1, 1) * scale - lse
        if masked:
            logits = jnp.where(blocks.visible(own_tags_ref[...], tags_ref[slot], keys_down=False), logits, HIDDEN)
        d_logits = jnp.exp(logits) * (dot(d_ref[...], v_ref[slot], 1, 1) - delta)
        dq_sum[...] += dot(d_logits.astype(k.dtype), k, 1, 0)

    blocks.walk(spans_ref, copies, step)
    dq_ref[...] = (dq_sum[...] * scale).astype(dq_ref.dtype)
