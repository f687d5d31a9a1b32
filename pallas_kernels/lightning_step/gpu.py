"""The decode step of a lightning layer on Hopper, from its projections to its norm; states lie in place in their stack.

    q, k, v = silu(.)    S <- exp(-slope) S + k v^T    o = S^T q    u = sigmoid(gate) * weight * o

A program has some value columns of one head of one row; columns do not meet. The norm divides u by the root of the mean
square of a row's o, one number, which commutes with the output projection: whoever adds its parts up divides.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import dispatch

KEYS = 64  # of the state's key lines, worked on together: the height of a wgmma's layout
DOWN, ACROSS = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)
MULTIPROCESSORS = 132  # of an H100 or H200 SXM
HEAD_DIMS = (64, 128)


class _Inputs(NamedTuple):
    active: jax.Ref  # int32 (B,)
    layer: jax.Ref  # int32 (1,)
    projected: jax.Ref  # bfloat16 (R, N * 3 * H + N * H): q, k, v of each head, then the gates
    slope: jax.Ref  # float32 (L, N)
    weight: jax.Ref  # bfloat16 (L, N, H)


class _Scratch(NamedTuple):
    full: jax.Ref
    gate: jax.Ref
    k: jax.Ref
    open: jax.Ref
    out: jax.Ref
    q: jax.Ref
    state: jax.Ref
    v: jax.Ref
    weight: jax.Ref


def unsupported(projected_RF, state_LBNHH, slope_LN, weight_LNH, active_B, layer) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del slope_LN, weight_LNH, active_B, layer
    if reason := dispatch.why_not_hopper():
        return reason
    if projected_RF.dtype != jnp.bfloat16:
        return f"it takes bfloat16, got {projected_RF.dtype.name}"
    if state_LBNHH.shape[-1] not in HEAD_DIMS:
        return f"head_dim must be one of {HEAD_DIMS}, got {state_LBNHH.shape[-1]}"
    return None


@jax.jit
def forward(projected_RF, state_LBNHH, slope_LN, weight_LNH, active_B, layer):
    """Contract in the package's docstring."""
    _, B, N, H, _ = state_LBNHH.shape
    width = H if B * N >= 2 * MULTIPROCESSORS else 32
    out = jax.ShapeDtypeStruct((projected_RF.shape[0], N * H), projected_RF.dtype)
    transforms = (plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(128))
    down, across = plgpu.SMEM((H,), projected_RF.dtype), plgpu.SMEM((width,), projected_RF.dtype)
    scratch = _Scratch(
        full=plgpu.Barrier(num_arrivals=6),
        gate=across,
        k=down,
        open=across,
        out=across,
        q=down,
        state=plgpu.SMEM((H, width), jnp.float32, transforms=transforms),
        v=across,
        weight=across,
    )
    kernel = plgpu.kernel(
        functools.partial(_program, width),
        out_type=[out, out],
        scratch_types={"smem": scratch},
        grid=(B, N, H // width),
        grid_names=("batch", "head", "part"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
    state_ref = jax.new_ref(state_LBNHH)
    inputs = _Inputs(active_B.astype(jnp.int32), layer, projected_RF, slope_LN, weight_LNH)
    o, u = kernel(inputs, state_ref)
    return o, u, jax.freeze(state_ref)


def _program(width: int, inputs: _Inputs, states, out_gmem, open_gmem, *, smem: _Scratch):
    b, n, first = lax.axis_index("batch"), lax.axis_index("head"), lax.axis_index("part") * width
    layer, (_, _, N, H, _) = inputs.layer[0], states.shape
    columns, row = pl.ds(first, width), inputs.projected.at[b]
    place = states.at[layer, b, n, :, columns]
    begin = n * (3 * H)
    copies = (
        (place, smem.state),
        (row.at[pl.ds(begin, H)], smem.q),
        (row.at[pl.ds(begin + H, H)], smem.k),
        (row.at[pl.ds(begin + 2 * H + first, width)], smem.v),
        (row.at[pl.ds(3 * N * H + n * H + first, width)], smem.gate),
        (inputs.weight.at[layer, n, columns], smem.weight),
    )
    for source, target in copies:
        plgpu.copy_gmem_to_smem(source, target, smem.full)
    decay, active = jnp.exp(-inputs.slope[layer, n]), inputs.active[b]
    plgpu.barrier_wait(smem.full)
    across = silu(smem.v, ACROSS)
    read = jnp.zeros((KEYS, width), jnp.float32)
    for low in range(0, H, KEYS):
        keys = pl.ds(low, KEYS)
        key, query = (silu(x.at[keys], DOWN) for x in (smem.k, smem.q))
        new = plgpu.load(smem.state.at[keys], layout=plgpu.Layout.WGMMA) * decay + outer(key, across)
        smem.state.at[keys][...] = new
        read += new * lax.broadcast_in_dim(query, new.shape, [0])
    result = read.sum(axis=0)
    result = jnp.where(jnp.broadcast_to(active, result.shape) > 0, result, jnp.zeros_like(result))
    smem.out[...] = result.astype(smem.out.dtype)
    gate, weight = (plgpu.load(x, layout=ACROSS).astype(jnp.float32) for x in (smem.gate, smem.weight))
    smem.open[...] = (result * weight / (1.0 + jnp.exp(-gate))).astype(smem.open.dtype)
    plgpu.commit_smem()
    for source, target in ((smem.out, out_gmem), (smem.open, open_gmem)):
        plgpu.copy_smem_to_gmem(source, target.at[b, pl.ds(n * H + first, width)])
    pl.when(active > 0)(functools.partial(plgpu.copy_smem_to_gmem, smem.state, place))
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def silu(ref, layout):
    """Rounded as the projections are: these are the k and v that prefill would have."""
    x = plgpu.load(ref, layout=layout).astype(jnp.float32)
    return (x / (1.0 + jnp.exp(-x))).astype(ref.dtype).astype(jnp.float32)


def outer(down, across):
    shape = (*down.shape, *across.shape)
    return lax.broadcast_in_dim(down, shape, [0]) * lax.broadcast_in_dim(across, shape, [1])
