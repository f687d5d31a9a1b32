"""The decode step of a lightning layer on a TPU, from its projections to its norm; states lie in place in their stack.

A step of the grid has some heads of one row. Heads are taken out of the projections before, which is little beside the
states; a state is multiplied in registers, not by the matmul unit: its bytes take the time.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import declared, dispatch

HEADS = 8  # of a block, which fill a register's rows
HEAD_DIMS = (64, 128, 256)


def unsupported(projected_RF, state_LBNHH, slope_LN, weight_LNH, active_B, layer) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del projected_RF, slope_LN, weight_LNH, active_B, layer
    return why_not(state_LBNHH)


def why_not(state_LBNHH) -> str | None:
    """Why a TPU kernel cannot take the states, or None."""
    if dispatch.platform() != "tpu":
        return f"the code is for {dispatch.platform()}, not for a TPU"
    if state_LBNHH.shape[-1] not in HEAD_DIMS:
        return f"head_dim must be one of {HEAD_DIMS}, got {state_LBNHH.shape[-1]}"
    return None


def forward(projected_RF, state_LBNHH, slope_LN, weight_LNH, active_B, layer):
    """Contract in the package's docstring."""
    _, B, N, H, _ = state_LBNHH.shape
    heads = blocked(N)
    tokens, state = specs(heads, H)
    token = jax.ShapeDtypeStruct((B, N, H), projected_RF.dtype)
    states = jax.ShapeDtypeStruct(state_LBNHH.shape, jnp.float32)
    moved = jax.ShapeDtypeStruct((2, B, N, H, H), jnp.float32)
    o, u, states = pl.pallas_call(
        _kernel,
        out_shape=[token, token, states],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(B, N // heads),
            in_specs=[*[tokens] * 4, pl.BlockSpec((None, heads, H), lambda b, n, layer, *_: (layer[0], n, 0)), state],
            out_specs=[tokens, tokens, state],
        ),
        input_output_aliases={8: 2},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=declared.cost(4 * B * N * H * H, projected_RF, moved),
        name="lightning_step",
    )(layer, slope_LN[layer[0]], active_B.astype(jnp.int32), *split(projected_RF, B, N), weight_LNH, state_LBNHH)
    return *in_rows((o, u), projected_RF.shape[0]), states


def blocked(N: int) -> int:
    """Heads of a block."""
    return HEADS if N % HEADS == 0 else N


def specs(heads: int, H: int) -> tuple[pl.BlockSpec, pl.BlockSpec]:
    """Of tokens (B, N, H), and of states (L, B, N, H, H)."""
    tokens = pl.BlockSpec((None, heads, H), lambda b, n, *_: (b, n, 0))
    return tokens, pl.BlockSpec((None, None, heads, H, H), lambda b, n, layer, *_: (layer[0], b, n, 0, 0))


def split(projected_RF, B: int, N: int):
    """q, k, v and gates, (B, N, H) each, as they were projected."""
    H = projected_RF.shape[1] // (4 * N)
    qkv = projected_RF[:B, : 3 * N * H].reshape(B, N, 3, H)
    return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], projected_RF[:B, 3 * N * H :].reshape(B, N, H)


def in_rows(heads_BNH, R: int):
    """Arrays (B, N, H) as rows (R, N H) that are filled up."""
    return [jnp.pad(x.reshape(x.shape[0], -1), ((0, R - x.shape[0]), (0, 0))) for x in heads_BNH]


def silu(ref) -> jax.Array:
    """Float32, rounded as the projections are: these are the k and v that prefill would have."""
    x = ref[...].astype(jnp.float32)
    return (x / (1.0 + jnp.exp(-x))).astype(ref.dtype).astype(jnp.float32)


def opened(out, gate_ref, weight_ref) -> jax.Array:
    """u of some heads' o."""
    return out * weight_ref[...].astype(jnp.float32) / (1.0 + jnp.exp(-gate_ref[...].astype(jnp.float32)))


def _kernel(_, slope_ref, active_ref, q_ref, k_ref, v_ref, gate_ref, weight_ref, state_ref, out_ref, open_ref, new_ref):
    heads, active = q_ref.shape[0], active_ref[pl.program_id(0)] != 0

    @pl.when(active)
    def _():
        q_columns, k_columns, v, outs = silu(q_ref).T, silu(k_ref).T, silu(v_ref), []
        for n in range(heads):
            decay = jnp.exp(jnp.full((1, 1), -slope_ref[pl.program_id(1) * heads + n], jnp.float32))
            state = decay * state_ref[n] + k_columns[:, n : n + 1] * v[n : n + 1]
            new_ref[n] = state
            outs.append(jnp.sum(q_columns[:, n : n + 1] * state, axis=0, keepdims=True))
        out = jnp.concatenate(outs, axis=0)
        out_ref[...] = out.astype(out_ref.dtype)
        open_ref[...] = opened(out, gate_ref, weight_ref).astype(open_ref.dtype)

    @pl.when(jnp.logical_not(active))
    def _():
        out_ref[...], open_ref[...] = jnp.zeros_like(out_ref), jnp.zeros_like(open_ref)
        new_ref[...] = state_ref[...]
