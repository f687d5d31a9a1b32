"""The decode step of a lightning layer on Hopper with states that are read and not written, and their fold.

    o_c = exp(-s (c+1)) S^T q_c + sum over j <= c of exp(-s (c-j)) (q_c k_j) v_j      S: before the ring's first token

The fold goes through the ring's tokens as `gpu.py` goes through them one step after the other.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu.fragmented_array import Tiling
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import dispatch
from pallas_kernels.lightning_step.gpu import ACROSS, DOWN, HEAD_DIMS, KEYS, outer, silu
from pallas_kernels.lightning_step.ring import RING

TABLE = plgpu.Layout.WGMMA
PARTS = 2  # programs of a head: small ones, of which some load while others multiply
SOME = 4  # of the ring's tokens, which come together; of those that are not there none


class _Inputs(NamedTuple):
    """What the programs read."""

    active: jax.Ref  # int32 (B,)
    layer: jax.Ref  # int32 (1,)
    place: jax.Ref  # int32 (1,)
    projected: jax.Ref  # bfloat16 (R, N * 3 * H + N * H)
    slope: jax.Ref  # float32 (L, N)
    states: jax.Ref  # float32 (L, B, N, H, H)
    weight: jax.Ref  # bfloat16 (L, N, H)


class _Scratch(NamedTuple):
    """Of some value columns of one head of one row."""

    asked: jax.Ref  # float32 (H,): the query as the state is asked
    full: jax.Ref
    gate: jax.Ref
    k: jax.Ref
    keys: jax.Ref
    new_key: jax.Ref
    new_value: jax.Ref
    open: jax.Ref
    out: jax.Ref
    q: jax.Ref
    share: jax.Ref  # float32 (RING,): of each token before
    state: jax.Ref
    told: jax.Ref
    v: jax.Ref
    values: jax.Ref
    weight: jax.Ref


def unsupported(dtype, state_LBNHH) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    if reason := dispatch.why_not_hopper():
        return reason
    if dtype != jnp.bfloat16:
        return f"it takes bfloat16, got {jnp.dtype(dtype).name}"
    if state_LBNHH.shape[-1] not in HEAD_DIMS:
        return f"head_dim must be one of {HEAD_DIMS}, got {state_LBNHH.shape[-1]}"
    return None


@jax.jit
def step(projected_RF, state_LBNHH, rings, slope_LN, weight_LNH, told):
    """Contract in the package's docstring."""
    (_, B, N, H, _), dtype = state_LBNHH.shape, projected_RF.dtype
    active_B, place, layer = told
    out, width = jax.ShapeDtypeStruct((projected_RF.shape[0], N * H), dtype), max(H // PARTS, 64)
    scratch = _Scratch(
        asked=plgpu.SMEM((H,), jnp.float32),
        full=plgpu.Barrier(num_arrivals=6),
        keys=plgpu.SMEM((RING, H), dtype),
        share=plgpu.SMEM((RING,), jnp.float32),
        state=plgpu.SMEM((H, width), jnp.float32),
        told=plgpu.Barrier(num_arrivals=2, num_barriers=RING // SOME),
        values=plgpu.SMEM((RING, width), dtype),
        **dict.fromkeys(("k", "new_key", "q"), plgpu.SMEM((H,), dtype)),
        **dict.fromkeys(("gate", "new_value", "open", "out", "v", "weight"), plgpu.SMEM((width,), dtype)),
    )
    kernel = plgpu.kernel(
        _program,
        out_type=[out, out],
        scratch_types={"smem": scratch},
        grid=(B, N, H // width),
        grid_names=("batch", "head", "part"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
    refs = [jax.new_ref(ring) for ring in rings]
    inputs = _Inputs(active_B.astype(jnp.int32), layer, place, projected_RF, slope_LN, state_LBNHH, weight_LNH)
    o, u = kernel(inputs, *refs)
    return o, u, tuple(jax.freeze(ref) for ref in refs)


def _program(inputs: _Inputs, keys, values, out_gmem, open_gmem, *, smem: _Scratch):
    """Of a row that has no turn nothing is read; it says 0."""
    active = inputs.active[lax.axis_index("batch")] > 0
    pl.when(active)(lambda: _say(inputs, keys, values, (out_gmem, open_gmem), smem))
    pl.when(jnp.logical_not(active))(lambda: _say_nothing(inputs, (out_gmem, open_gmem), smem))


def _say_nothing(inputs: _Inputs, outs, smem: _Scratch) -> None:
    b, n, part = (lax.axis_index(name) for name in ("batch", "head", "part"))
    H, width = inputs.weight.shape[2], smem.out.shape[0]
    smem.out[...] = plgpu.layout_cast(jnp.zeros((width,), smem.out.dtype), _lines(width).reduce(0))
    plgpu.commit_smem()
    for target in outs:
        plgpu.copy_smem_to_gmem(smem.out, target.at[b, pl.ds(n * H + part * width, width)])
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _say(inputs: _Inputs, keys, values, outs, smem: _Scratch) -> None:
    b, n, part = (lax.axis_index(name) for name in ("batch", "head", "part"))
    layer, place, (_, _, N, _, H), width = inputs.layer[0], inputs.place[0], keys.shape, smem.state.shape[1]
    mine, begin, first, row = (layer, b, n), n * (3 * H), part * width, inputs.projected.at[b]
    columns, out_columns = pl.ds(first, width), pl.ds(n * H + first, width)
    copies = (
        (inputs.states.at[(*mine, slice(None), columns)], smem.state),
        (row.at[pl.ds(begin, H)], smem.q),
        (row.at[pl.ds(begin + H, H)], smem.k),
        (row.at[pl.ds(begin + 2 * H + first, width)], smem.v),
        (row.at[pl.ds(3 * N * H + n * H + first, width)], smem.gate),
        (inputs.weight.at[layer, n, columns], smem.weight),
    )
    for source, target in copies:
        plgpu.copy_gmem_to_smem(source, target, smem.full)

    def fill(lines, number):
        for ring, across, target in ((keys, slice(None), smem.keys), (values, columns, smem.values)):
            plgpu.copy_gmem_to_smem(ring.at[(*mine, lines, across)], target.at[lines], smem.told.at[number])

    _each(place, fill)
    slope = inputs.slope[layer, n]
    plgpu.barrier_wait(smem.full)
    _each(place, lambda _, number: plgpu.barrier_wait(smem.told.at[number]))
    own = _ask(smem, slope, place)
    across, dtype = _lines(width).reduce(0), smem.out.dtype
    value = silu(smem.v, across)
    result = _read(smem, place) + jnp.broadcast_to(own, (width,)) * value
    gate, weight = (plgpu.load(x, layout=across).astype(jnp.float32) for x in (smem.gate, smem.weight))
    smem.out[...], smem.new_value[...] = (x.astype(dtype) for x in (result, value))
    smem.open[...] = (result * weight / (1.0 + jnp.exp(-gate))).astype(dtype)
    plgpu.commit_smem()
    for source, target in zip((smem.out, smem.open), outs, strict=True):
        plgpu.copy_smem_to_gmem(source, target.at[b, out_columns])
    pl.when(part == 0)(lambda: plgpu.copy_smem_to_gmem(smem.new_key, keys.at[(*mine, place)]))
    plgpu.copy_smem_to_gmem(smem.new_value, values.at[(*mine, place, columns)])
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _each(place, do) -> None:
    """do(lines, number) for every SOME lines of the ring of which one is there."""
    for number in range(RING // SOME):
        pl.when(place > number * SOME)(functools.partial(do, pl.ds(number * SOME, SOME), number))


def _ask(smem: _Scratch, slope, place):
    """q k of the token itself; what the state is asked, and what each token before counts, go to shared memory."""
    lines, H = _lines(smem.q.shape[0]), smem.q.shape[0]
    query, key = (silu(x, lines.reduce(0)) for x in (smem.q, smem.k))
    smem.new_key[...] = key.astype(smem.new_key.dtype)
    smem.asked[...] = query * jnp.exp(-slope * (place + 1).astype(jnp.float32))
    keys = plgpu.load(smem.keys, layout=lines).astype(jnp.float32)
    score = (keys * lax.broadcast_in_dim(query, (RING, H), [1])).sum(axis=1)
    line = plgpu.broadcasted_iota(jnp.int32, (RING,), 0, layout=lines.reduce(1))
    score *= jnp.exp((line - place).astype(jnp.float32) * slope)
    smem.share[...] = jnp.where(line < place, score, jnp.zeros_like(score))
    plgpu.commit_smem()
    return (query * key).sum(axis=0)


def _read(smem: _Scratch, place):
    """What the state and the tokens before say (width,), RING lines of either at a time."""
    H, width = smem.state.shape
    lines, shape = _lines(width), (RING, width)

    def share(ref):
        return lax.broadcast_in_dim(plgpu.load(ref, layout=lines.reduce(1)), shape, [0])

    values = plgpu.load(smem.values, layout=lines).astype(jnp.float32)
    line = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=lines)
    read = jnp.where(line < place, values, jnp.zeros(shape, jnp.float32)) * share(smem.share)
    for low in range(0, H, RING):
        some = pl.ds(low, RING)
        read += plgpu.load(smem.state.at[some], layout=lines) * share(smem.asked.at[some])
    return read.sum(axis=0)


def _lines(width: int) -> plgpu.Layout:
    """The layout of tables RING down, 64 or 128 across: a thread has four numbers of a line, a warp whole lines."""
    if width == 128:
        return plgpu.Layout.TILED(Tiling(((4, 128), (4,))), (-3,), (-2,), -1)
    return plgpu.Layout.TILED(Tiling(((8, 64), (2, 64), (4,))), (-5,), (-3, -2), -1)


class _FoldScratch(NamedTuple):
    full: jax.Ref
    keys: jax.Ref
    state: jax.Ref
    values: jax.Ref


@jax.jit
def fold(state_LBNHH, rings, slope_LN, count_B):
    """Contract in the package's docstring."""
    L, B, N, H, _ = state_LBNHH.shape
    width, dtype = max(H // PARTS, 64), rings[0].dtype
    scratch = _FoldScratch(
        full=plgpu.Barrier(num_arrivals=3),
        keys=plgpu.SMEM((RING, H), dtype),
        state=plgpu.SMEM((H, width), jnp.float32, transforms=_tiled(32)),
        values=plgpu.SMEM((RING, width), dtype),
    )
    kernel = plgpu.kernel(
        _fold_program,
        out_type=[],
        scratch_types={"smem": scratch},
        grid=(L, B, N, H // width),
        grid_names=("layer", "batch", "head", "part"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
    ref = jax.new_ref(state_LBNHH)
    kernel(*rings, slope_LN, count_B, ref)
    return jax.freeze(ref)


def _fold_program(keys, values, slope, count, states, *, smem: _FoldScratch):
    """A row without a token keeps its state as it lies."""
    some = count[lax.axis_index("batch")] > 0
    pl.when(some)(lambda: _fold(keys, values, (slope, count), states, smem))


def _fold(keys, values, told, states, smem: _FoldScratch) -> None:
    slope, count = told
    *mine, part = (lax.axis_index(name) for name in ("layer", "batch", "head", "part"))
    H, width = smem.state.shape
    columns = (*mine, slice(None), pl.ds(part * width, width))
    for source, target in (
        (states.at[columns], smem.state),
        (keys.at[tuple(mine)], smem.keys),
        (values.at[columns], smem.values),
    ):
        plgpu.copy_gmem_to_smem(source, target, smem.full)
    decay = jnp.exp(-slope[mine[0], mine[2]])
    lows = range(0, H, KEYS)
    plgpu.barrier_wait(smem.full)

    def one(token, parts):
        value = plgpu.load(smem.values.at[token], layout=ACROSS).astype(jnp.float32)
        key = [plgpu.load(smem.keys.at[token, pl.ds(low, KEYS)], layout=DOWN).astype(jnp.float32) for low in lows]
        return tuple(part * decay + outer(k, value) for part, k in zip(parts, key, strict=True))

    parts = tuple(plgpu.load(smem.state.at[pl.ds(low, KEYS)], layout=TABLE) for low in lows)
    parts = lax.fori_loop(0, count[mine[1]], one, parts)
    for low, part in zip(lows, parts, strict=True):
        smem.state.at[pl.ds(low, KEYS)][...] = part
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(smem.state, states.at[columns])
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _tiled(across: int):
    return (plgpu.TilingTransform((8, across)), plgpu.SwizzleTransform(128))
