"""One decode token on Hopper: S <- exp(-slope) S + k v^T, out = S^T q, each state read and written once, in place."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.varying import vary_alike

ROWS = 64


def step(q_BNH, k_BNH, v_BNH, slope_N, state_BNHH, active_B):
    """Contract in the package's docstring. All in float32: the state's bytes, not its arithmetic, take the time."""
    B, N, H = q_BNH.shape
    varies = jax.typeof(q_BNH).mat
    out_type = [jax.ShapeDtypeStruct((B, N, H), q_BNH.dtype, manual_axis_type=varies)]
    inputs = {"q": q_BNH, "k": k_BNH, "v": v_BNH, "slope": slope_N}
    if active_B is not None:
        inputs["active"] = active_B.astype(jnp.int32)
    # In a checked `shard_map` no reference can vary over mesh axes (jax 0.11, 0.12): the new state is another array.
    in_place = not varies.varying
    if not in_place:
        out_type.append(jax.ShapeDtypeStruct(state_BNHH.shape, jnp.float32, manual_axis_type=varies))
    transforms = (plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(128))
    vector = plgpu.SMEM((H,), q_BNH.dtype)
    kernel = plgpu.kernel(
        _program,
        out_type=out_type,
        scratch_types={
            "state": plgpu.SMEM((H, H), jnp.float32, transforms=transforms),
            **dict.fromkeys(("q", "k", "v", "out"), vector),
            "full": plgpu.Barrier(num_arrivals=4),
        },
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


def _program(inputs, state_gmem, out_gmem, new_gmem=None, *, state, q, k, v, out, full):
    """One head of one row; without `new_gmem` in place."""
    b, n = lax.axis_index("batch"), lax.axis_index("head")
    place = (b, n)
    for gmem, smem in ((state_gmem, state), (inputs["q"], q), (inputs["k"], k), (inputs["v"], v)):
        plgpu.copy_gmem_to_smem(gmem.at[place], smem, full)
    active = inputs["active"][b] if "active" in inputs else None
    decay = jnp.exp(-inputs["slope"][n])
    plgpu.barrier_wait(full)
    H = state.shape[0]
    across = _vector(v, plgpu.Layout.WGMMA.reduce(0))
    read = jnp.zeros((ROWS, H), jnp.float32)
    for low in range(0, H, ROWS):
        rows = pl.ds(low, ROWS)
        key, query = (_vector(x.at[rows], plgpu.Layout.WGMMA.reduce(1)) for x in (k, q))
        old = plgpu.load(state.at[rows], layout=plgpu.Layout.WGMMA)
        new = old * decay + _outer(key, across)
        state.at[rows][...] = new if active is None or new_gmem is None else _where(active, new, old)
        read += new * lax.broadcast_in_dim(query, new.shape, [0])
    result = read.sum(axis=0)
    if active is not None:
        result = _where(active, result, jnp.zeros_like(result))
    out[...] = result.astype(out.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(out, out_gmem.at[place])
    keep = functools.partial(plgpu.copy_smem_to_gmem, state, (state_gmem if new_gmem is None else new_gmem).at[place])
    keep() if active is None or new_gmem is not None else pl.when(active > 0)(keep)
    plgpu.wait_smem_to_gmem(0)


def _vector(ref, layout):
    return plgpu.load(ref, layout=layout).astype(jnp.float32)


def _where(active, x, y):
    # As wide as what it chooses between: the warpgroup lowering broadcasts no scalar predicate.
    return jnp.where(jnp.broadcast_to(active, x.shape) > 0, x, y)


def _outer(down, across):
    shape = (*down.shape, *across.shape)
    return lax.broadcast_in_dim(down, shape, [0]) * lax.broadcast_in_dim(across, shape, [1])
