"""One decode token on Hopper: S <- exp(-slope) S + k v^T, out = S^T q, each state read and written once, in place."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.varying import vary_alike

KEYS = 64  # of the state's key lines, worked on together: the height of a wgmma's layout


class _Inputs(NamedTuple):
    """What the programs read."""

    active: jax.Ref | None  # int32 (B,), not 0 where the row has a token; None: all have
    k: jax.Ref  # (B, N, H)
    q: jax.Ref  # (B, N, H)
    slope: jax.Ref  # float32 (N,)
    v: jax.Ref  # (B, N, H)


class _Scratch(NamedTuple):
    """A program's shared memory, in the order it lies there: of one head of one row."""

    full: jax.Ref  # barrier: the state, q, k and v have arrived
    k: jax.Ref  # (H,) in q's dtype, and so q, v and out
    out: jax.Ref
    q: jax.Ref
    state: jax.Ref  # float32 (H, H)
    v: jax.Ref


def step(q_BNH, k_BNH, v_BNH, slope_N, state_BNHH, active_B):
    """Contract in the package's docstring. All in float32: the state's bytes, not its arithmetic, take the time."""
    B, N, H = q_BNH.shape
    varies = jax.typeof(q_BNH).mat
    out_type = [jax.ShapeDtypeStruct((B, N, H), q_BNH.dtype, manual_axis_type=varies)]
    active_B = None if active_B is None else active_B.astype(jnp.int32)
    inputs = _Inputs(active=active_B, k=k_BNH, q=q_BNH, slope=slope_N, v=v_BNH)
    # In a checked `shard_map` no reference can vary over mesh axes (jax 0.11, 0.12): the new state is another array.
    in_place = not varies.varying
    if not in_place:
        out_type.append(jax.ShapeDtypeStruct(state_BNHH.shape, jnp.float32, manual_axis_type=varies))
    transforms = (plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(128))
    vector, state = plgpu.SMEM((H,), q_BNH.dtype), plgpu.SMEM((H, H), jnp.float32, transforms=transforms)
    scratch = _Scratch(full=plgpu.Barrier(num_arrivals=4), k=vector, out=vector, q=vector, state=state, v=vector)
    kernel = plgpu.kernel(
        _program,
        out_type=out_type,
        scratch_types={"smem": scratch},
        grid=(B, N),
        grid_names=("batch", "head"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
    if in_place:
        state_ref = jax.new_ref(state_BNHH)
        (out,) = kernel(inputs, state_ref)
        return out, jax.freeze(state_ref)
    _, out, state = vary_alike(q_BNH, *kernel(inputs, state_BNHH))
    return out, state


def _program(inputs: _Inputs, state_gmem, out_gmem, new_gmem=None, *, smem: _Scratch):
    """One head of one row; without `new_gmem` in place."""
    b, n = lax.axis_index("batch"), lax.axis_index("head")
    place = (b, n)
    for source, target in ((state_gmem, smem.state), (inputs.q, smem.q), (inputs.k, smem.k), (inputs.v, smem.v)):
        plgpu.copy_gmem_to_smem(source.at[place], target, smem.full)
    active = None if inputs.active is None else inputs.active[b]
    decay = jnp.exp(-inputs.slope[n])
    plgpu.barrier_wait(smem.full)
    H = smem.state.shape[0]
    across = _vector(smem.v, plgpu.Layout.WGMMA.reduce(0))
    read = jnp.zeros((KEYS, H), jnp.float32)
    for low in range(0, H, KEYS):
        keys = pl.ds(low, KEYS)
        key, query = (_vector(x.at[keys], plgpu.Layout.WGMMA.reduce(1)) for x in (smem.k, smem.q))
        old = plgpu.load(smem.state.at[keys], layout=plgpu.Layout.WGMMA)
        new = old * decay + _outer(key, across)
        smem.state.at[keys][...] = new if active is None or new_gmem is None else _where(active, new, old)
        read += new * lax.broadcast_in_dim(query, new.shape, [0])
    result = read.sum(axis=0)
    if active is not None:
        result = _where(active, result, jnp.zeros_like(result))
    smem.out[...] = result.astype(smem.out.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(smem.out, out_gmem.at[place])
    target = (state_gmem if new_gmem is None else new_gmem).at[place]
    write_state = functools.partial(plgpu.copy_smem_to_gmem, smem.state, target)
    write_state() if active is None or new_gmem is not None else pl.when(active > 0)(write_state)
    plgpu.wait_smem_to_gmem(0)


def _vector(ref, layout):
    return plgpu.load(ref, layout=layout).astype(jnp.float32)


def _where(active, x, y):
    # As wide as what it chooses between: the warpgroup lowering broadcasts no scalar predicate.
    return jnp.where(jnp.broadcast_to(active, x.shape) > 0, x, y)


def _outer(down, across):
    shape = (*down.shape, *across.shape)
    return lax.broadcast_in_dim(down, shape, [0]) * lax.broadcast_in_dim(across, shape, [1])
