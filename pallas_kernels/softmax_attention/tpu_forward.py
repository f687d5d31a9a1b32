"""Softmax attention on TPUs, forward: a block of queries of one head a program, keys and values streamed past it.

The softmax is the online one: a row's largest logit so far and its sum, both rescaled when a larger one comes.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.softmax_attention import tpu_blocks as blocks
from pallas_kernels.softmax_attention.masking import Tags, key_spans
from pallas_kernels.softmax_attention.tpu_blocks import HIDDEN, LINES, dot


def attend(query, key, value, query_tags: Tags, key_tags: Tags, out_dtype):
    """query (B, N, S, H), key and value (B, K, T, H), lengths multiples of TILE; padding has id -1 among queries,
    -2 among keys.

    Returns: (out (B, N, S, H) in `out_dtype`, lse (B, N, S) float32, as `api.attend`).
    """
    (B, N, S, H), (K, T) = query.shape, key.shape[1:3]
    query_block, key_block = blocks.block_of(S), blocks.block_of(T)
    vary = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(query).mat)
    out, lse = blocks.call(
        functools.partial(_program, N // K),
        [
            (vary((B, N, S, H), out_dtype), blocks.own(query_block, H)),
            (vary((B, N, LINES, S), jnp.float32), blocks.own_lines(query_block, of_heads=True)),
        ],
        key_spans(query_tags, query_block, key_tags, key_block),
        (query, blocks.tag_lines(query_tags), key, value, blocks.tag_lines(key_tags)),
        [
            blocks.own(query_block, H),
            blocks.own_lines(query_block, of_heads=False),
            *[pl.BlockSpec(memory_space=pl.ANY)] * 3,
        ],
        [
            pltpu.VMEM((2, key_block, H), key.dtype),
            pltpu.VMEM((2, key_block, H), value.dtype),
            pltpu.VMEM((2, LINES, key_block), jnp.int32),
            pltpu.SemaphoreType.DMA((2, 3)),
            pltpu.VMEM((query_block, H), jnp.float32),
            pltpu.VMEM((query_block, 1), jnp.float32),
            pltpu.VMEM((query_block, 1), jnp.float32),
        ],
        grid=(B, N, S // query_block),
        name="softmax_forward",
        flops=2 * 2 * B * N * S * T * H,
    )
    return out, lse[:, :, 0]


def _program(
    group: int,
    spans_ref,
    q_ref,
    own_tags_ref,
    k_hbm,
    v_hbm,
    tags_hbm,
    out_ref,
    lse_ref,
    k_ref,
    v_ref,
    tags_ref,
    semaphores,
    sum_ref,
    peak_ref,
    total_ref,
):
    b, n = pl.program_id(0), pl.program_id(1)
    key_block = k_ref.shape[1]
    sum_ref[...] = jnp.zeros_like(sum_ref)
    peak_ref[...] = jnp.full_like(peak_ref, HIDDEN)
    total_ref[...] = jnp.zeros_like(total_ref)

    def copies(_, block, slot):
        tokens, kv_head = pl.ds(block * key_block, key_block), lax.div(n, group)
        places = (k_hbm.at[b, kv_head, tokens], v_hbm.at[b, kv_head, tokens], tags_hbm.at[b, :, tokens])
        for i, (source, target) in enumerate(zip(places, (k_ref, v_ref, tags_ref), strict=True)):
            yield pltpu.make_async_copy(source, target.at[slot], semaphores.at[slot, i])

    def step(_, slot, masked: bool):
        logits = dot(q_ref[...], k_ref[slot], 1, 1) * blocks.scale_of(q_ref.shape[1])
        if masked:
            logits = jnp.where(blocks.visible(own_tags_ref[...], tags_ref[slot], keys_down=False), logits, 2 * HIDDEN)
        peak = jnp.maximum(peak_ref[...], jnp.max(logits, axis=1, keepdims=True))
        rescale = jnp.exp(peak_ref[...] - peak)
        weights = jnp.exp(logits - peak)
        total_ref[...] = total_ref[...] * rescale + jnp.sum(weights, axis=1, keepdims=True)
        sum_ref[...] = sum_ref[...] * rescale + dot(weights.astype(v_ref.dtype), v_ref[slot], 1, 0)
        peak_ref[...] = peak

    blocks.walk(spans_ref, copies, step)
    sees_any = total_ref[...] > 0
    total = jnp.where(sees_any, total_ref[...], 1.0)
    out_ref[...] = (sum_ref[...] / total).astype(out_ref.dtype)
    lse = jnp.where(sees_any, peak_ref[...] + jnp.log(total), jnp.finfo(jnp.float32).min)
    lse_ref[...] = jnp.broadcast_to(lse, (lse.shape[0], LINES)).T
