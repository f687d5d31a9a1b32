"""Softmax attention on Hopper, backward, in two passes, as in FlashAttention: neither holds a (queries, keys) matrix.

    P = exp(Q K' - lse)     dS = P * (dO V' - delta)     dV = P' dO     dK = dS' Q / sqrt(H)     dQ = dS K / sqrt(H)

`key_gradients`: 128 keys of one head a program, the queries of all heads that read them streamed past. The logits stand
with keys down, so that P' and dS' are left operands as they are. `query_gradient`: 128 queries, keys streamed past.
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
from pallas_kernels.softmax_attention.gpu_blocks import ACROSS, DOWN, ROWS, TILE
from pallas_kernels.varying import vary_alike

BLOCK = 64  # tokens of the other side
STAGES = 2


def key_gradients(arrays, query_index, key_index, spans, out_dtype):
    """(dK, dV), (B, T, K, H) in `out_dtype`.

    Args:
      arrays: query, key, value, d_out as in the forward pass; lse and delta = sum over H of d_out * out, (B, N, S)
        float32. Lengths, padding and indices as in the forward pass.
      spans: int32 (4, B, T / TILE), `masking.query_spans` in blocks of BLOCK.
    """
    query, key, *_ = arrays
    (B, T, K, H), N = key.shape, query.shape[2]
    vary = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(query).mat)
    scratch = {"k": blocks.tile(2, ROWS, H), "v": blocks.tile(2, ROWS, H)}
    scratch |= {"q": blocks.tile(STAGES, BLOCK, H), "d": blocks.tile(STAGES, BLOCK, H)}
    scratch |= {x: plgpu.SMEM((STAGES, BLOCK), jnp.float32) for x in ("lse", "delta")}
    kernel = _kernel(
        functools.partial(_key_program, N // K),
        [vary(key.shape, out_dtype)] * 2,
        scratch,
        grid=(K, T // TILE, B),
        own=4,  # k, v and the index
        streamed=6,  # q, d, lse, delta and the index
    )
    inputs = _inputs(arrays, key_index, query_index, spans)
    with declared.flops(4 * 2 * B * N * query.shape[1] * T * H):
        gradients = kernel(inputs)
    return vary_alike(query, *gradients)[1:]


def query_gradient(arrays, query_index, key_index, spans, out_dtype):
    """dQ, (B, S, N, H) in `out_dtype`. spans: int32 (4, B, S / TILE), `masking.key_spans` in blocks of BLOCK."""
    query, key, *_ = arrays
    B, S, N, H = query.shape
    vary = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(query).mat)
    scratch = {"q": blocks.tile(2, ROWS, H), "d": blocks.tile(2, ROWS, H)}
    scratch |= {"k": blocks.tile(STAGES, BLOCK, H), "v": blocks.tile(STAGES, BLOCK, H)}
    scratch |= {x: plgpu.SMEM((2, ROWS), jnp.float32) for x in ("lse", "delta")}
    kernel = _kernel(
        functools.partial(_query_program, N // key.shape[2]),
        [vary(query.shape, out_dtype)],
        scratch,
        grid=(N, S // TILE, B),
        own=6,
        streamed=4,
    )
    inputs = _inputs(arrays, query_index, key_index, spans)
    with declared.flops(3 * 2 * B * N * S * key.shape[1] * H):
        (gradient,) = kernel(inputs)
    return vary_alike(query, gradient)[1]


def _kernel(program, out_type, scratch, *, grid, own: int, streamed: int):
    """own, streamed: copies that bring a warpgroup's own rows, and a block of the other side."""
    scratch = scratch | {
        "positions": plgpu.SMEM((STAGES, BLOCK), jnp.int32),
        "segments": plgpu.SMEM((STAGES, BLOCK), jnp.int32),
        "own": plgpu.SMEM((2, 2, ROWS), jnp.int32),
        "own_full": plgpu.Barrier(num_arrivals=own, num_barriers=2),
        "full": plgpu.Barrier(num_arrivals=streamed, num_barriers=STAGES),
        "free": plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
    }
    return plgpu.kernel(
        program,
        out_type=out_type,
        scratch_types=scratch,
        grid=grid,
        grid_names=("head", "tile", "batch"),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )


def _inputs(arrays, own, other, spans):
    names = ("q", "k", "v", "d", "lse", "delta")
    return dict(zip(names, arrays, strict=True)) | {"own": own, "other": other, "spans": spans}


def _seen(smem, warpgroup, slot, keys_down: bool):
    """(64, 64): the mask, own rows down and a block's tokens across."""
    own = smem["own"].at[warpgroup]
    position, segment = (blocks.down(plgpu.load(own.at[i], layout=DOWN), BLOCK) for i in range(2))
    other, other_segment = (
        blocks.across(plgpu.load(smem[x].at[slot], layout=ACROSS), ROWS) for x in ("positions", "segments")
    )
    return (segment == other_segment) & ((position <= other) if keys_down else (position >= other))


def _load_index(inputs, smem, b, tokens, slot):
    for name, array in zip(("positions", "segments"), inputs["other"], strict=True):
        plgpu.copy_gmem_to_smem(array.at[b, tokens], smem[name].at[slot], smem["full"].at[slot])


def _load_own(inputs, smem, warpgroup, names, place, b, rows):
    full = smem["own_full"].at[warpgroup]
    for name in names:
        plgpu.copy_gmem_to_smem(inputs[name].at[place[name]], smem[name].at[warpgroup], full)
    for i in range(2):
        plgpu.copy_gmem_to_smem(inputs["own"][i].at[b, rows], smem["own"].at[warpgroup, i], full)
    plgpu.barrier_wait(full)


def _key_program(heads: int, inputs, dk_gmem, dv_gmem, **smem):
    b, kv_head, t = lax.axis_index("batch"), lax.axis_index("head"), lax.axis_index("tile")  # the first keys first
    span = blocks.Span.of(inputs["spans"], b, t)
    H = inputs["k"].shape[3]
    scale = 1 / math.sqrt(H)

    def load():
        def fill(step, slot):
            n = kv_head * heads + lax.div(step, span.steps)
            tokens = pl.ds((span.first + lax.rem(step, span.steps)) * BLOCK, BLOCK)
            _load_index(inputs, smem, b, tokens, slot)
            full = smem["full"].at[slot]
            for name in ("q", "d"):
                plgpu.copy_gmem_to_smem(inputs[name].at[b, tokens, n], smem[name].at[slot], full)
            for name in ("lse", "delta"):
                plgpu.copy_gmem_to_smem(inputs[name].at[b, n, tokens], smem[name].at[slot], full)

        blocks.stream(span.steps * heads, STAGES, (smem["free"],), fill)

    def compute(warpgroup):
        rows = pl.ds(t * TILE + warpgroup * ROWS, ROWS)
        place = dict.fromkeys(("k", "v"), (b, rows, kv_head))
        _load_own(inputs, smem, warpgroup, ("k", "v"), place, b, rows)
        k, v = smem["k"].at[warpgroup], smem["v"].at[warpgroup]

        def step(head, block, carry, *, masked: bool):
            dk, dv = carry
            slot = lax.rem(head * span.steps + block - span.first, jnp.int32(STAGES))
            plgpu.barrier_wait(smem["full"].at[slot])
            q, d = smem["q"].at[slot], smem["d"].at[slot]
            lse, delta = (plgpu.load(smem[x].at[slot], layout=ACROSS) for x in ("lse", "delta"))
            logits, d_weights = blocks.products((k, q.transpose((1, 0))), (v, d.transpose((1, 0))))
            logits = logits * (scale * math.log2(math.e)) - blocks.across(lse * math.log2(math.e), ROWS)
            if masked:
                logits = jnp.where(_seen(smem, warpgroup, slot, True), logits, jnp.float32(blocks.LOW))
            weights = jnp.exp2(logits)
            dv = blocks.add_product(dv, weights.astype(jnp.bfloat16), d)
            d_logits = weights * (d_weights - blocks.across(delta, ROWS))
            dk = blocks.add_product(dk, d_logits.astype(jnp.bfloat16), q)
            plgpu.barrier_arrive(smem["free"].at[slot])
            return dk, dv

        def one_head(head, carry):
            return span.walk(functools.partial(step, head), carry)

        dk, dv = lax.fori_loop(0, heads, one_head, (blocks.zeros(ROWS, H), blocks.zeros(ROWS, H)))
        blocks.leave(dk * scale, dk_gmem.at[b, rows, kv_head], k)
        blocks.leave(dv, dv_gmem.at[b, rows, kv_head], v)
        plgpu.wait_smem_to_gmem(0)

    blocks.compute_and_load(compute, load)


def _query_program(heads: int, inputs, dq_gmem, **smem):
    b, n, tiles = lax.axis_index("batch"), lax.axis_index("head"), inputs["spans"].shape[2]
    t = tiles - 1 - lax.axis_index("tile")
    span = blocks.Span.of(inputs["spans"], b, t)
    kv_head = lax.div(n, jnp.int32(heads))
    H = inputs["q"].shape[3]
    scale = 1 / math.sqrt(H)

    def load():
        def fill(step, slot):
            tokens = pl.ds((span.first + step) * BLOCK, BLOCK)
            _load_index(inputs, smem, b, tokens, slot)
            for name in ("k", "v"):
                place = inputs[name].at[b, tokens, kv_head]
                plgpu.copy_gmem_to_smem(place, smem[name].at[slot], smem["full"].at[slot])

        blocks.stream(span.steps, STAGES, (smem["free"],), fill)

    def compute(warpgroup):
        rows = pl.ds(t * TILE + warpgroup * ROWS, ROWS)
        place = dict.fromkeys(("q", "d"), (b, rows, n)) | dict.fromkeys(("lse", "delta"), (b, n, rows))
        _load_own(inputs, smem, warpgroup, ("q", "d", "lse", "delta"), place, b, rows)
        q, d = smem["q"].at[warpgroup], smem["d"].at[warpgroup]
        lse, delta = (plgpu.load(smem[x].at[warpgroup], layout=DOWN) for x in ("lse", "delta"))
        lse = lse * math.log2(math.e)

        def step(block, dq, *, masked: bool):
            slot = lax.rem(block - span.first, jnp.int32(STAGES))
            plgpu.barrier_wait(smem["full"].at[slot])
            k, v = smem["k"].at[slot], smem["v"].at[slot]
            logits, d_weights = blocks.products((q, k.transpose((1, 0))), (d, v.transpose((1, 0))))
            logits = logits * (scale * math.log2(math.e)) - blocks.down(lse, BLOCK)
            if masked:
                logits = jnp.where(_seen(smem, warpgroup, slot, False), logits, jnp.float32(blocks.LOW))
            d_logits = jnp.exp2(logits) * (d_weights - blocks.down(delta, BLOCK))
            dq = blocks.add_product(dq, d_logits.astype(jnp.bfloat16), k)
            plgpu.barrier_arrive(smem["free"].at[slot])
            return dq

        dq = span.walk(step, blocks.zeros(ROWS, H))
        blocks.leave(dq * scale, dq_gmem.at[b, rows, n], q)
        plgpu.wait_smem_to_gmem(0)

    blocks.compute_and_load(compute, load)
