"""The decode step for TPUs: one token per row, the state updated and read where it lies."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import declared, dispatch
from pallas_kernels.lightning_attention import tiling


def step(q_BNH, k_BNH, v_BNH, slope_N, state_BNHH, active_B):
    """Contract in the package's docstring."""
    tiles = tiling.tiling(dispatch.device_kind())
    return tiled_step(q_BNH, k_BNH, v_BNH, slope_N, state_BNHH, active_B, tiles)


def tiled_step(q_BNH, k_BNH, v_BNH, slope_N, state_BNHH, active_B, tiles):
    """`step` with given tiles."""
    B, N, H = q_BNH.shape
    heads = tiles.step_heads if N % tiles.step_heads == 0 else N
    if active_B is None:
        active_B = jnp.ones_like(state_BNHH[:, 0, 0, 0], jnp.bool_)
    tokens = pl.BlockSpec((None, heads, H), lambda b, n, *_: (b, n, 0))
    state = pl.BlockSpec((None, heads, H, H), lambda b, n, *_: (b, n, 0, 0))
    varying = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(q_BNH).manual_axis_type)
    return pl.pallas_call(
        _step_kernel,
        out_shape=[varying(q_BNH.shape, q_BNH.dtype), varying(state_BNHH.shape, jnp.float32)],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, N // heads),
            in_specs=[tokens, tokens, tokens, state],
            out_specs=[tokens, state],
        ),
        input_output_aliases={5: 1},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=tiles.vmem_limit_bytes
        ),
        cost_estimate=declared.cost(4 * state_BNHH.size, q_BNH, k_BNH, v_BNH, q_BNH, state_BNHH, state_BNHH),
        name="step",
    )(slope_N, active_B.astype(jnp.int32), q_BNH, k_BNH, v_BNH, state_BNHH)


def _step_kernel(slope_ref, active_ref, q_ref, k_ref, v_ref, state_ref, out_ref, new_ref):
    """The state is multiplied in registers, not by the matmul unit: its bytes take the time."""
    heads = q_ref.shape[0]
    active = active_ref[pl.program_id(0)] != 0

    @pl.when(active)
    def _():
        v = v_ref[...].astype(jnp.float32)
        q_columns, k_columns = (ref[...].astype(jnp.float32).T for ref in (q_ref, k_ref))
        for n in range(heads):
            decay = jnp.exp(jnp.full((1, 1), -slope_ref[pl.program_id(1) * heads + n], jnp.float32))
            state = decay * state_ref[n] + k_columns[:, n : n + 1] * v[n : n + 1]
            new_ref[n] = state
            out = jnp.sum(q_columns[:, n : n + 1] * state, axis=0, keepdims=True)
            out_ref[n : n + 1] = out.astype(out_ref.dtype)

    @pl.when(jnp.logical_not(active))
    def _():
        out_ref[...] = jnp.zeros_like(out_ref)
        new_ref[...] = state_ref[...]
