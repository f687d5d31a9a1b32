"""The gated norm for NVIDIA Hopper (Pallas Mosaic GPU), bfloat16: one pass over memory each way.

XLA's gradient reads everything twice, because each row needs a sum over itself before its first result. Here a row
stays in the registers of a warp. Programs take every so-many-th four rows; what rows add to the weight's gradient they
add up in registers, and XLA adds the programs' sums.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu.fragmented_array import Tiling
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import dispatch
from pallas_kernels.gated_norm import rows, xla
from pallas_kernels.varying import vary_alike

ROWS = 4  # of a step: one for each warp
WIDTH = 128  # what a warp reads at a time, 4 numbers a lane: no float32 transfer may be wider
WIDEST = 2048  # 64 numbers of each array in a lane's registers; the gradient has room for half of that
PROGRAMS = 4 * 132  # several on each multiprocessor of an H100 or H200 SXM: one loads while another computes
LAYOUT = plgpu.Layout.TILED(Tiling(((ROWS, WIDTH), (WIDTH // 32,))), (-3,), (-2,), -1)


def unsupported(x_RW, gate_RW, weight_W) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del gate_RW, weight_W
    if reason := dispatch.why_not_hopper():
        return reason
    if x_RW.dtype != jnp.bfloat16:
        return f"it takes bfloat16, got {x_RW.dtype.name}"
    R, W = x_RW.shape
    if W % WIDTH or W > WIDEST or R % ROWS:
        return f"rows must be a multiple of {ROWS}, their width one of {WIDTH} up to {WIDEST}, got R={R}, W={W}"
    return None


def forward(x_RW, gate_RW, weight_W, eps):
    """Contract in the package's docstring."""
    return _run(lambda *blocks: (rows.forward(*blocks, eps),), (x_RW, gate_RW), weight_W, 1, sums=False)[0]


def backward(x_RW, gate_RW, weight_W, eps, dy_RW):
    """Contract in the package's docstring."""
    if x_RW.shape[1] > WIDEST // 2:
        return xla.backward(x_RW, gate_RW, weight_W, eps, dy_RW)

    def block(x, gate, dy, weight):
        return rows.backward(x, gate, weight, dy, eps)

    dx, d_gate, d_weight = _run(block, (x_RW, gate_RW, dy_RW), weight_W, 2, sums=True)
    return dx, d_gate, jnp.sum(d_weight, axis=0)


def _run(block, arrays, weight_W, num_outs: int, *, sums: bool):
    """block(float32 (ROWS, W) of each array, weight as wide) -> (outs, and with `sums` what is to be added up)."""
    R, W = arrays[0].shape
    programs = min(PROGRAMS, R // ROWS)
    vary = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(arrays[0]).mat)
    out_type = [vary((R, W), arrays[0].dtype)] * num_outs
    out_type += [vary((programs * ROWS, W), jnp.float32)] * sums
    kernel = plgpu.kernel(
        functools.partial(_program, block, programs, len(arrays), num_outs),
        out_type=out_type,
        grid=(programs,),
        grid_names=("program",),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
    weight = jnp.broadcast_to(weight_W.astype(jnp.float32), (ROWS, W))
    return vary_alike(arrays[0], *kernel(*arrays, weight))[1:]


def _program(block, programs: int, num_arrays: int, num_outs: int, *refs):
    *arrays, weight_ref = refs[: num_arrays + 1]
    outs, totals = refs[num_arrays + 1 :][:num_outs], refs[num_arrays + 1 + num_outs :]
    program, steps = lax.axis_index("program"), arrays[0].shape[0] // ROWS

    def load(ref, first):
        # Under `shard_map` a load has the array's varying axes in its type; arithmetic in a kernel does not keep them.
        loaded = plgpu.load(ref.at[pl.ds(first, ROWS)], layout=LAYOUT, optimized=False)
        return loaded.astype(jnp.float32) * jnp.float32(1)

    def step(i, sums):
        first = (program + i * programs) * ROWS
        results = block(*(load(ref, first) for ref in arrays), load(weight_ref, 0))
        for out, result in zip(outs, results, strict=False):
            out[pl.ds(first, ROWS)] = result.astype(out.dtype)
        return tuple(a + b for a, b in zip(sums, results[num_outs:], strict=True))

    zero = plgpu.layout_cast(jnp.zeros((ROWS, arrays[0].shape[1]), jnp.float32), LAYOUT)
    count = lax.div(steps - program + (programs - 1), jnp.int32(programs))
    sums = lax.fori_loop(0, count, step, (zero,) * len(totals))
    for total, value in zip(totals, sums, strict=True):
        total[pl.ds(program * ROWS, ROWS)] = value
