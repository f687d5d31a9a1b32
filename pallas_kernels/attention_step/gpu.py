"""A softmax layer's decode step on Hopper: `gpu_place`, then attention over filled blocks alone, cut over the chip.

A program has a stretch of the keys of one key head of one row, and all queries of that head. Where there are several,
each leaves its unnormalised sum, greatest score and weight, and a second launch puts them together.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import dispatch
from pallas_kernels.attention_step import gpu_place
from pallas_kernels.few_rows import EIGHT, ROWS, filled_up
from pallas_kernels.projection_step import gpu_stream as stream
from pallas_kernels.projection_step.gpu_stream import ROW

BLOCK = 64  # keys of a step
STAGES = 2  # two programs fit a multiprocessor
PROGRAMS = 264  # wanted: two on each multiprocessor of an H100 or H200 SXM
MOST_SPLITS = 64
LEAST = -1e30
HEAD_DIMS = (64, 128)


class _Inputs(NamedTuple):
    count: jax.Ref  # int32 (B,), keys of each row
    keys: jax.Ref  # bfloat16 (L, B, K, T, H)
    layer: jax.Ref  # int32 (1,)
    query: jax.Ref  # bfloat16 (B, K, EIGHT, H)
    values: jax.Ref


class _Scratch(NamedTuple):
    arrived: jax.Ref
    full: jax.Ref
    keys: jax.Ref
    marks: jax.Ref  # of each query the greatest score, and the weight of its sum
    query: jax.Ref
    scores: jax.Ref
    staged: jax.Ref
    values: jax.Ref


def splits_of(B: int, K: int, T: int) -> int:
    """Stretches of each row's keys."""
    return max(1, min(MOST_SPLITS, -(-PROGRAMS // (B * K)), T // BLOCK))


def unsupported(projected_RF, angle_BA, keys_LBKTH, values_LBKTH, told) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del values_LBKTH, told
    if reason := dispatch.why_not_hopper():
        return reason
    if projected_RF.dtype != jnp.bfloat16:
        return f"it takes bfloat16, got {projected_RF.dtype.name}"
    _, _, K, T, H = keys_LBKTH.shape
    G = projected_RF.shape[1] // H // K - 2
    if G > EIGHT or H not in HEAD_DIMS or T % BLOCK:
        allowed = f"up to {EIGHT} queries a key head, head_dim of {HEAD_DIMS}, T a multiple of {BLOCK}"
        return f"it takes {allowed}; got {G}, {H}, {T}"
    if angle_BA.shape[1] % gpu_place.ANGLES:
        return f"the number of angles must be a multiple of {gpu_place.ANGLES}, got {angle_BA.shape[1]}"
    return None


@jax.jit
def forward(projected_RF, angle_BA, keys_LBKTH, values_LBKTH, told):
    """Contract in the package's docstring."""
    position_B, active_B, layer = told
    stores = keys_LBKTH, values_LBKTH
    query, *stores = gpu_place.place(projected_RF, angle_BA, *stores, told)
    # Of a row that has no turn, which may be a long prompt on its way, no more than a block is read.
    count_B = jnp.where(active_B, jnp.clip(position_B + 1, 1, keys_LBKTH.shape[3]), 1)
    group = projected_RF.shape[1] // math.prod(query.shape[1::2]) - 2
    return attend(query, group, *stores, count_B, layer), *stores


def attend(query_BKGH, group: int, keys_LBKTH, values_LBKTH, count_B, layer):
    """out (R, W) of queries (B, K, EIGHT, H), a group of each."""
    _, B, K, T, H = keys_LBKTH.shape
    G, dtype, splits = group, query_BKGH.dtype, splits_of(B, K, T)
    scratch = _Scratch(
        arrived=plgpu.Barrier(num_arrivals=1),
        full=plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
        keys=stream.tile(STAGES, BLOCK, H, width=BLOCK),
        marks=plgpu.SMEM((2, ROWS), jnp.float32),
        query=stream.tile(ROWS, H, width=BLOCK),
        scores=stream.tile(ROWS, BLOCK, width=BLOCK),
        staged=plgpu.SMEM((ROWS, H), dtype if splits == 1 else jnp.float32),
        values=stream.tile(STAGES, BLOCK, H, width=BLOCK),
    )
    result = jax.ShapeDtypeStruct((filled_up(B), K, G, H), dtype)
    outs = [result]
    if splits > 1:  # as many as a table has lines, of which the first are written
        outs = [jax.ShapeDtypeStruct((ROWS, B, K, *shape), jnp.float32) for shape in ((G, H), (2, ROWS))]
    kernel = stream.launch(functools.partial(_program, splits), outs, scratch, (splits, B, K))
    found = kernel(_Inputs(count_B, keys_LBKTH, layer, query_BKGH, values_LBKTH))
    if splits > 1:
        kernel = plgpu.kernel(
            functools.partial(_join, splits),
            out_type=result,
            grid=(B, K, G),
            grid_names=("row", "head", "query"),
            compiler_params=plgpu.CompilerParams(approx_math=True),
        )
        found = [kernel(*found)]
    return found[0].reshape(result.shape[0], K * G * H)


def _program(splits: int, inputs: _Inputs, out, *rest):
    *marks, scratch = rest
    split, b, k = (lax.axis_index(name) for name in "xyz")
    layer, count, H = inputs.layer[0], inputs.count[b], inputs.keys.shape[4]
    blocks = lax.div(count + (BLOCK - 1), jnp.int32(BLOCK))
    each = lax.div(blocks + (splits - 1), jnp.int32(splits))
    first = split * each
    steps = jnp.maximum(jnp.minimum(each, blocks - first), 0)

    def fill(step, at):
        place = layer, b, k, pl.ds((first + step) * BLOCK, BLOCK)
        for store, target in ((inputs.keys, scratch.keys), (inputs.values, scratch.values)):
            plgpu.copy_gmem_to_smem(store.at[place], target.at[at], scratch.full.at[at])

    plgpu.copy_gmem_to_smem(inputs.query.at[b, k], scratch.query.at[pl.ds(0, EIGHT)], scratch.arrived)
    for step in range(STAGES):
        pl.when(step < steps)(lambda step=step: fill(jnp.int32(step), step))
    plgpu.barrier_wait(scratch.arrived)

    def one(step, carry):
        total, greatest, weight = carry
        slot = lax.rem(step, jnp.int32(STAGES))
        plgpu.barrier_wait(scratch.full.at[slot])
        scores = _product(scratch.query, scratch.keys.at[slot].transpose((1, 0)), BLOCK) * (H**-0.5)
        ids = plgpu.broadcasted_iota(jnp.int32, scores.shape, 1, layout=plgpu.Layout.WGMMA)
        seen = ids + (first + step) * BLOCK < count
        scores = jnp.where(seen, scores, jnp.full_like(scores, LEAST))
        new = jnp.maximum(greatest, scores.max(axis=1))
        over = jnp.exp(scores - lax.broadcast_in_dim(new, scores.shape, [0]))
        shrink = jnp.exp(greatest - new)
        scratch.scores[...] = over.astype(scratch.scores.dtype)
        plgpu.commit_smem()
        mixed = _product(scratch.scores, scratch.values.at[slot], H)
        pl.when(step + STAGES < steps)(lambda: fill(step + STAGES, slot))
        total = total * lax.broadcast_in_dim(shrink, total.shape, [0]) + mixed
        return total, new, weight * shrink + over.sum(axis=1)

    zero = plgpu.layout_cast(jnp.zeros((ROWS, H), jnp.float32), plgpu.Layout.WGMMA)
    least, none = (plgpu.layout_cast(jnp.full((ROWS,), value, jnp.float32), ROW) for value in (LEAST, 0.0))
    total, greatest, weight = lax.fori_loop(0, steps, one, (zero, least, none))
    mine = scratch.staged.at[pl.ds(0, out.shape[-2])]
    if splits == 1:
        scratch.staged[...] = (total / lax.broadcast_in_dim(weight, total.shape, [0])).astype(out.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(mine, out.at[b, k])
    else:
        scratch.staged[...], scratch.marks[0], scratch.marks[1] = total, greatest, weight
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(mine, out.at[split, b, k])
        plgpu.copy_smem_to_gmem(scratch.marks, marks[0].at[split, b, k])
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _join(splits: int, parts, marks, out):
    """Puts the stretches of one query together: tables of ROWS stretches down, `splits` of them there."""
    b, k, g = (lax.axis_index(name) for name in ("row", "head", "query"))
    stretches = plgpu.broadcasted_iota(jnp.int32, (ROWS,), 0, layout=ROW)
    most, own = (plgpu.load(marks.at[:, b, k, i, g], layout=ROW, optimized=False) for i in range(2))
    most = jnp.where(stretches < splits, most, jnp.full((ROWS,), LEAST, jnp.float32))
    own = jnp.where(stretches < splits, own, jnp.zeros((ROWS,), jnp.float32))
    share = jnp.exp(most - jnp.broadcast_to(most.max(axis=0), most.shape))
    share /= jnp.broadcast_to((share * own).sum(axis=0), share.shape)
    part = plgpu.load(parts.at[:, b, k, g], layout=plgpu.Layout.WGMMA, optimized=False)
    lines = plgpu.broadcasted_iota(jnp.int32, part.shape, 0, layout=plgpu.Layout.WGMMA)
    part = jnp.where(lines < splits, part, jnp.zeros_like(part))
    out[b, k, g] = (part * lax.broadcast_in_dim(share, part.shape, [0])).sum(axis=0).astype(out.dtype)


def _product(left, right, width: int):
    def run(total):
        plgpu.wgmma(total, left, right)
        plgpu.wgmma_wait(0)
        return total[...]

    return pl.run_scoped(run, plgpu.ACC((ROWS, width), jnp.float32))
