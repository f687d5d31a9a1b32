"""The decode step of a lightning layer on a TPU with states that are read and not written, and their fold.

    o_c = exp(-s (c+1)) S^T q_c + sum over j <= c of exp(-s (c-j)) (q_c k_j) v_j      S: before the ring's first token

A token's place in the ring is less than what a TPU writes at once, so a step reads and writes the heads' whole rings, a
quarter of their states. The fold goes through the ring's tokens as single steps do.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import declared
from pallas_kernels.lightning_step.tpu import blocked, in_rows, opened, silu, specs, split, why_not


def unsupported(dtype, state_LBNHH) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del dtype
    return why_not(state_LBNHH)


def step(projected_RF, state_LBNHH, rings, slope_LN, weight_LNH, told):
    """Contract in the package's docstring."""
    (_, B, N, H, _), dtype = state_LBNHH.shape, projected_RF.dtype
    active_B, place, layer = told
    heads = blocked(N)
    tokens, state = specs(heads, H)
    ring = _ring(heads, rings[0].shape[3], H)
    token, like = jax.ShapeDtypeStruct((B, N, H), dtype), jax.ShapeDtypeStruct(rings[0].shape, dtype)
    moved = jax.ShapeDtypeStruct((B, N, H, H), jnp.float32)
    o, u, *rings = pl.pallas_call(
        _kernel,
        out_shape=[token, token, like, like],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(B, N // heads),
            in_specs=[
                *[tokens] * 4,
                pl.BlockSpec((None, heads, H), lambda b, n, layer, *_: (layer[0], n, 0)),
                state,
                ring,
                ring,
            ],
            out_specs=[tokens, tokens, ring, ring],
        ),
        input_output_aliases={10: 2, 11: 3},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=declared.cost(2 * B * N * H * H, projected_RF, moved),
        name="lightning_ring_step",
    )(
        layer,
        slope_LN[layer[0]],
        active_B.astype(jnp.int32),
        place,
        *split(projected_RF, B, N),
        weight_LNH,
        state_LBNHH,
        *rings,
    )
    return *in_rows((o, u), projected_RF.shape[0]), tuple(rings)


def fold(state_LBNHH, rings, slope_LN, count_B):
    """Contract in the package's docstring."""
    L, B, N, H, _ = state_LBNHH.shape
    heads = blocked(N)
    ring = pl.BlockSpec((None, None, heads, *rings[0].shape[3:]), lambda layer, b, n, *_: (layer, b, n, 0, 0))
    state = pl.BlockSpec((None, None, heads, H, H), lambda layer, b, n, *_: (layer, b, n, 0, 0))
    return pl.pallas_call(
        _fold_kernel,
        out_shape=jax.ShapeDtypeStruct(state_LBNHH.shape, jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(L, B, N // heads),
            in_specs=[ring, ring, state],
            out_specs=state,
        ),
        input_output_aliases={4: 0},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel")),
        cost_estimate=declared.cost(4 * state_LBNHH.size, *rings, state_LBNHH, state_LBNHH),
        name="lightning_fold",
    )(slope_LN, count_B, *rings, state_LBNHH)


def _ring(heads: int, length: int, H: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, heads, length, H), lambda b, n, layer, *_: (layer[0], b, n, 0, 0))


def _kernel(_, slope_ref, active_ref, place_ref, q_ref, k_ref, v_ref, gate_ref, weight_ref, state_ref, *refs):
    keys_ref, values_ref, out_ref, open_ref, new_keys_ref, new_values_ref = refs
    (heads, length, _), place = keys_ref.shape, place_ref[0]
    active = active_ref[pl.program_id(0)] != 0
    new_keys_ref[...], new_values_ref[...] = keys_ref[...], values_ref[...]

    @pl.when(active)
    def _():
        q, k, v = (silu(ref) for ref in (q_ref, k_ref, v_ref))
        q_columns, outs = q.T, []
        line = jax.lax.broadcasted_iota(jnp.int32, (length, 1), 0)
        for n in range(heads):
            slope = jnp.full((1, 1), slope_ref[pl.program_id(1) * heads + n], jnp.float32)
            query = q[n : n + 1]
            read = jnp.exp(-slope * (place + 1).astype(jnp.float32)) * state_ref[n] * q_columns[:, n : n + 1]
            out = jnp.sum(read, axis=0, keepdims=True) + jnp.sum(query * k[n : n + 1]) * v[n : n + 1]
            keys, values = keys_ref[n].astype(jnp.float32), values_ref[n].astype(jnp.float32)
            score = jnp.sum(keys * query, axis=1, keepdims=True) * jnp.exp((line - place).astype(jnp.float32) * slope)
            out += jnp.sum(jnp.where(line < place, score * values, 0.0), axis=0, keepdims=True)
            outs.append(out)
            new_keys_ref[n] = jnp.where(line == place, k[n : n + 1], keys).astype(new_keys_ref.dtype)
            new_values_ref[n] = jnp.where(line == place, v[n : n + 1], values).astype(new_values_ref.dtype)
        out = jnp.concatenate(outs, axis=0)
        out_ref[...] = out.astype(out_ref.dtype)
        open_ref[...] = opened(out, gate_ref, weight_ref).astype(open_ref.dtype)

    @pl.when(jnp.logical_not(active))
    def _():
        out_ref[...], open_ref[...] = jnp.zeros_like(out_ref), jnp.zeros_like(open_ref)


def _fold_kernel(slope_ref, count_ref, keys_ref, values_ref, state_ref, new_ref):
    layer, row, first = pl.program_id(0), pl.program_id(1), pl.program_id(2) * keys_ref.shape[0]
    heads, length, _ = keys_ref.shape
    count = count_ref[row]
    for n in range(heads):
        decay = jnp.exp(jnp.full((1, 1), -slope_ref[layer, first + n], jnp.float32))
        columns, values, state = keys_ref[n].astype(jnp.float32).T, values_ref[n].astype(jnp.float32), state_ref[n]
        for token in range(length):
            after = decay * state + columns[:, token : token + 1] * values[token : token + 1]
            state = jnp.where(token < count, after, state)
        new_ref[n] = state
