"""The two streaming kernels for TPUs, forward and backward in time, (batch, heads, time blocks) in the grid.

Time is the grid's last axis and runs in order, so the state (or its gradient) stays in VMEM from block to block. With
one document and no padding all chunks have the same decays: they are made once per head and kept in VMEM. Otherwise
each chunk makes its own from eight numbers per token, `ages.chunk_rows`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import declared
from pallas_kernels.lightning_attention import ages, tiling
from pallas_kernels.precision import matmul_precision


def scan(slope_N, lines, sequences, state_BNHH, tiles):
    """(out (B, N, S, H), state) of the sequences q, k, v (B, N, S, H); `lines` as `ages.chunk_rows`."""
    return _call(_scan_kernel, slope_N, lines, sequences, state_BNHH, tiles, outputs=1, reverse=False)


def reverse_scan(slope_N, lines, sequences, d_state_BNHH, tiles):
    """(dk, dv, d_state) of the sequences q, k, v, do (B, N, S, H) and the outgoing state's gradient."""
    return _call(_reverse_kernel, slope_N, lines, sequences, d_state_BNHH, tiles, outputs=2, reverse=True)


def _call(kernel, slope_N, lines, sequences, state_BNHH, tiles, *, outputs: int, reverse: bool):
    """Runs `kernel` over (batch, head, time), the last in order; `outputs` arrays like the sequences, and the state."""
    x = sequences[0]
    B, N, S, H = x.shape
    C = tiles.chunk
    block = tiling.block_tokens(S, H, x.dtype.itemsize, tiles)
    blocks = S // block
    packed = lines.shape[2] == S

    def time(t):
        return blocks - 1 - t if reverse else t

    def lines_index(b, n, t, _):
        return b if lines.shape[0] > 1 else 0, 0, time(t) if packed else 0

    tokens = pl.BlockSpec((None, None, block, H), lambda b, n, t, _: (b, n, time(t), 0))
    state = pl.BlockSpec((None, None, H, H), lambda b, n, t, _: (b, n, 0, 0))
    lines_spec = pl.BlockSpec((None, ages.ROWS, block if packed else C), lines_index)
    varying = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(x).manual_axis_type)
    out_shape = [varying(x.shape, x.dtype)] * outputs + [varying(state_BNHH.shape, jnp.float32)]
    products = 2 * x.size * (2 * outputs * C + (outputs + 1) * H)  # in a chunk, and with the state
    return pl.pallas_call(
        functools.partial(kernel, chunk=C, packed=packed, unroll=tiles.unroll),
        out_shape=out_shape,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B, N, blocks),
            in_specs=[lines_spec, *[tokens] * len(sequences), state],
            out_specs=[tokens] * outputs + [state],
            scratch_shapes=[
                pltpu.VMEM((H, H), jnp.float32),
                pltpu.VMEM((C, C), jnp.float32),
                pltpu.VMEM((C, ages.ROWS), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=tiles.vmem_limit_bytes
        ),
        cost_estimate=declared.cost(products, lines, *sequences, state_BNHH, *out_shape),
        name=kernel.__name__.strip("_"),
    )(slope_N, lines, *sequences, state_BNHH)


class _Decays(NamedTuple):
    """float32, in registers."""

    intra: jax.Array  # (C, C)
    columns: jax.Array  # (C, ROWS), the rows of `ages.chunk_rows` as columns, distances turned into decays

    @property
    def read(self):
        return self.columns[:, 2:3]

    @property
    def write(self):
        return self.columns[:, 3:4]

    @property
    def carry(self):
        return self.columns[0:1, 4:5]


def _decays(slope, lines_8C, *, keys_first: bool) -> _Decays:
    """Decays of a chunk; `keys_first` gives the intra-chunk ones transposed, keys down and queries across."""
    C = lines_8C.shape[1]
    index = jax.lax.broadcasted_iota(jnp.int32, lines_8C.shape, 0)
    decay_8C = jnp.where(lines_8C < 0, 0.0, jnp.exp(-slope * jnp.maximum(lines_8C, 0.0)))
    columns = jnp.where(index < 2, lines_8C, decay_8C).T
    down = jax.lax.broadcasted_iota(jnp.int32, (C, C), 0)
    across = jax.lax.broadcasted_iota(jnp.int32, (C, C), 1)
    age_across, age_down = lines_8C[0:1], columns[:, 0:1]
    if keys_first:
        alive = (age_down >= lines_8C[1:2]) & (down <= across)
        distance = age_across - age_down
    else:
        alive = (age_across >= columns[:, 1:2]) & (across <= down)
        distance = age_down - age_across
    return _Decays(jnp.where(alive, jnp.exp(-slope * jnp.maximum(distance, 0.0)), 0.0), columns)


def _over_chunks(body, slope, lines_ref, tables, block: int, *, chunk: int, packed: bool, unroll: int, reverse: bool):
    """Calls `body(slice of the block, decays)` for each chunk, the tables filled once per head unless packed."""
    intra_ref, columns_ref = tables

    if not packed:

        @pl.when(pl.program_id(2) == 0)
        def _():
            decays = _decays(slope, lines_ref[...], keys_first=reverse)
            intra_ref[...], columns_ref[...] = decays.intra, decays.columns

    def step(i, _):
        i = block // chunk - 1 - i if reverse else i
        where = pl.ds(pl.multiple_of(i * chunk, chunk), chunk)
        if packed:
            body(where, _decays(slope, lines_ref[:, where], keys_first=reverse))
        else:
            body(where, _Decays(intra_ref[...], columns_ref[...]))

    jax.lax.fori_loop(0, block // chunk, step, None, unroll=min(unroll, block // chunk))


def _scan_kernel(slope_ref, lines_ref, q_ref, k_ref, v_ref, first_ref, out_ref, last_ref, state_ref, *tables, **sizes):
    @pl.when(pl.program_id(2) == 0)
    def _():
        state_ref[...] = first_ref[...]

    def chunk(where, decay):
        q, k, v, state = q_ref[where], k_ref[where], v_ref[where], state_ref[...]
        scores = (_dot(q, k, 1, 1) * decay.intra).astype(q.dtype)
        out = _dot(scores, v, 1, 0) + _dot(_scale(q, decay.read), state.astype(q.dtype), 1, 0)
        out_ref[where] = out.astype(out_ref.dtype)
        state_ref[...] = decay.carry * state + _dot(_scale(k, decay.write), v, 0, 0)

    slope = slope_ref[pl.program_id(1)]
    _over_chunks(chunk, slope, lines_ref, tables, q_ref.shape[0], reverse=False, **sizes)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        last_ref[...] = state_ref[...]


def _reverse_kernel(
    slope_ref,
    lines_ref,
    q_ref,
    k_ref,
    v_ref,
    d_out_ref,
    last_ref,
    dk_ref,
    dv_ref,
    first_ref,
    state_ref,
    *tables,
    **sizes,
):
    @pl.when(pl.program_id(2) == 0)
    def _():
        state_ref[...] = last_ref[...]

    def chunk(where, decay):
        q, k, v, d_out, d_state = q_ref[where], k_ref[where], v_ref[where], d_out_ref[where], state_ref[...]
        # Keys down, queries across: both products then take their left operand as it lies.
        scores = (_dot(k, q, 1, 1) * decay.intra).astype(q.dtype)
        d_scores = (_dot(v, d_out, 1, 1) * decay.intra).astype(q.dtype)
        later = d_state.astype(q.dtype)
        dv = _dot(scores, d_out, 1, 0) + _dot(_scale(k, decay.write), later, 1, 0)
        dk = _dot(d_scores, q, 1, 0) + _dot(_scale(v, decay.write), later, 1, 1)
        dk_ref[where], dv_ref[where] = dk.astype(dk_ref.dtype), dv.astype(dv_ref.dtype)
        state_ref[...] = decay.carry * d_state + _dot(_scale(q, decay.read), d_out, 0, 0)

    slope = slope_ref[pl.program_id(1)]
    _over_chunks(chunk, slope, lines_ref, tables, q_ref.shape[0], reverse=True, **sizes)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        first_ref[...] = state_ref[...]


def _scale(x, decay_C1):
    return (x.astype(jnp.float32) * decay_C1).astype(x.dtype)


def _dot(x, y, x_axis: int, y_axis: int):
    contract = (((x_axis,), (y_axis,)), ((), ()))
    return jax.lax.dot_general(x, y, contract, precision=matmul_precision(x.dtype), preferred_element_type=jnp.float32)
