"""Softmax attention on Hopper, forward: 128 queries of one head a program, keys and values streamed past them.

The softmax is the online one (Milakov and Gimelshein, arXiv 1805.02867), as in FlashAttention: a row's largest logit so
far and its sum, both rescaled when a larger one comes. The two warpgroups take turns, as in FlashAttention-3 (arXiv
2407.08608): while one has the matrix unit the other has its softmax.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import declared
from pallas_kernels.softmax_attention import gpu_blocks as blocks
from pallas_kernels.softmax_attention.gpu_blocks import ACROSS, DOWN, LOW, ROWS, TILE
from pallas_kernels.varying import vary_alike

KEYS = 128  # of a block
STAGES = 2


def attend(query, key, value, query_index, key_index, spans, out_dtype):
    """S a multiple of TILE, T of KEYS; padding has segment -1 among queries, -2 among keys.

    Args:
      query_index, key_index: (positions, segments), int32 (B, S), (B, T).
      spans: int32 (4, B, S / TILE), `masking.key_spans` in blocks of KEYS.

    Returns:
      (out (B, S, N, H) in `out_dtype`, lse (B, N, S) float32: the logsumexp; the smallest finite float32 for queries
      that see nothing, whose out is 0).
    """
    B, S, N, H = query.shape
    vary = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(query).mat)
    kernel = plgpu.kernel(
        _program,
        out_type=[vary((B, S, N, H), out_dtype), vary((B, N, S), jnp.float32)],
        scratch_types={
            "q": blocks.tile(2, ROWS, H),
            "k": blocks.tile(STAGES, KEYS, H),
            "v": blocks.tile(STAGES, KEYS, H),
            "positions": plgpu.SMEM((STAGES, KEYS), jnp.int32),
            "segments": plgpu.SMEM((STAGES, KEYS), jnp.int32),
            "own": plgpu.SMEM((2, 2, ROWS), jnp.int32),
            "lse": plgpu.SMEM((2, ROWS), jnp.float32),
            "q_full": plgpu.Barrier(num_arrivals=3, num_barriers=2),
            "k_full": plgpu.Barrier(num_arrivals=3, num_barriers=STAGES),
            "v_full": plgpu.Barrier(num_barriers=STAGES),
            "k_free": plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
            "v_free": plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
            "turn": plgpu.Barrier(num_arrivals=2),
        },
        grid=(N, S // TILE, B),
        grid_names=("head", "tile", "batch"),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
    inputs = {"q": query, "k": key, "v": value, "own": query_index, "other": key_index, "spans": spans}
    with declared.flops(2 * 2 * B * N * S * key.shape[1] * H):
        out, lse = kernel(inputs)
    return vary_alike(query, out, lse)[1:]


def _program(inputs, out_gmem, lse_gmem, **smem):
    b, n, tiles = lax.axis_index("batch"), lax.axis_index("head"), inputs["spans"].shape[2]
    t = tiles - 1 - lax.axis_index("tile")  # the last queries have the most keys: their programs start first
    span = blocks.Span.of(inputs["spans"], b, t)
    kv_head = lax.div(n, jnp.int32(inputs["q"].shape[2] // inputs["k"].shape[2]))

    def load():
        def fill(step, slot):
            keys = pl.ds((span.first + step) * KEYS, KEYS)
            for name, array in zip(("positions", "segments"), inputs["other"], strict=True):
                plgpu.copy_gmem_to_smem(array.at[b, keys], smem[name].at[slot], smem["k_full"].at[slot])
            for name in ("k", "v"):
                array, full = inputs[name], smem[f"{name}_full"]
                plgpu.copy_gmem_to_smem(array.at[b, keys, kv_head], smem[name].at[slot], full.at[slot])

        blocks.stream(span.steps, STAGES, (smem["k_free"], smem["v_free"]), fill)

    blocks.compute_and_load(functools.partial(_compute, inputs, out_gmem, lse_gmem, smem, (b, n, t), span), load)


def _compute(inputs, out_gmem, lse_gmem, smem, place, span, warpgroup):
    b, n, t = place
    rows = pl.ds(t * TILE + warpgroup * ROWS, ROWS)
    q, own, full = smem["q"].at[warpgroup], smem["own"].at[warpgroup], smem["q_full"].at[warpgroup]
    plgpu.copy_gmem_to_smem(inputs["q"].at[b, rows, n], q, full)
    for i in range(2):
        plgpu.copy_gmem_to_smem(inputs["own"][i].at[b, rows], own.at[i], full)
    plgpu.barrier_wait(full)
    H = q.shape[1]
    scale = math.log2(math.e) / math.sqrt(H)

    turn = smem["turn"]

    def pass_on():
        plgpu.barrier_arrive(turn)
        plgpu.barrier_wait(turn)

    def step(block, carry, *, masked: bool):
        out, peak, total = carry
        slot = lax.rem(block - span.first, jnp.int32(STAGES))
        plgpu.barrier_wait(smem["k_full"].at[slot])
        (logits,) = blocks.products((q, smem["k"].at[slot].transpose((1, 0))), then=pass_on)
        logits = logits * scale
        if masked:
            position, segment = (plgpu.load(own.at[i], layout=DOWN) for i in range(2))
            other, other_segment = (plgpu.load(smem[x].at[slot], layout=ACROSS) for x in ("positions", "segments"))
            seen = blocks.down(segment, KEYS) == blocks.across(other_segment, ROWS)
            seen &= blocks.down(position, KEYS) >= blocks.across(other, ROWS)
            logits = jnp.where(seen, logits, jnp.float32(2 * LOW))
        plgpu.barrier_arrive(smem["k_free"].at[slot])
        new_peak = jnp.maximum(peak, logits.max(axis=1))
        rescale = jnp.exp2(peak - new_peak)
        weights = jnp.exp2(logits - blocks.down(new_peak, KEYS))
        total = total * rescale + weights.sum(axis=1)
        out = out * blocks.down(rescale, H)
        weights = weights.astype(jnp.bfloat16)
        out, total, new_peak, weights = lax.optimization_barrier((out, total, new_peak, weights))
        plgpu.barrier_arrive(turn)
        plgpu.barrier_wait(smem["v_full"].at[slot])
        plgpu.barrier_wait(turn)
        out = blocks.add_product(out, weights, smem["v"].at[slot])
        plgpu.barrier_arrive(smem["v_free"].at[slot])
        return out, new_peak, total

    peak = plgpu.layout_cast(jnp.full((ROWS,), LOW, jnp.float32), DOWN)
    pl.when(warpgroup == 1)(pass_on)
    out, peak, total = span.walk(step, (blocks.zeros(ROWS, H), peak, blocks.zeros(ROWS)))
    pl.when(warpgroup == 0)(pass_on)
    some = total > 0
    total = jnp.where(some, total, jnp.float32(1))
    least = jnp.float32(jnp.finfo(jnp.float32).min)
    smem["lse"].at[warpgroup][...] = jnp.where(some, (peak + jnp.log2(total)) * math.log(2), least)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(smem["lse"].at[warpgroup], lse_gmem.at[b, n, rows])
    blocks.leave(out / blocks.down(total, H), out_gmem.at[b, rows, n], q)
    plgpu.wait_smem_to_gmem(0)
