"""The gated norm for TPUs (Pallas Mosaic): one pass over HBM each way, blocks of whole rows in VMEM."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import dispatch
from pallas_kernels.gated_norm import rows

LANES, WIDEST = 128, 8192
BLOCK_BYTES = 2**20  # of one array's block in float32: a handful of them fit a TPU v5e's VMEM twice


def unsupported(x_RW, gate_RW, weight_W) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del gate_RW, weight_W
    if dispatch.platform() != "tpu":
        return f"the code is for {dispatch.platform()}, not for a TPU"
    R, W = x_RW.shape
    if W % LANES or W > WIDEST or R % _block(R, W):
        return f"the width must be a multiple of {LANES} up to {WIDEST} and rows fill blocks, got R={R}, W={W}"
    return None


def _block(R: int, W: int) -> int:
    """Rows of a block: as many as BLOCK_BYTES have, in whole tiles of bfloat16."""
    return min(max(16, BLOCK_BYTES // (4 * W) // 16 * 16), R)


def forward(x_RW, gate_RW, weight_W, eps):
    """Contract in the package's docstring."""
    return _run(functools.partial(_forward, eps), (x_RW, gate_RW), weight_W, 1, sums=False)[0]


def backward(x_RW, gate_RW, weight_W, eps, dy_RW):
    """Contract in the package's docstring."""
    dx, d_gate, d_weight = _run(functools.partial(_backward, eps), (x_RW, gate_RW, dy_RW), weight_W, 2, sums=True)
    return dx, d_gate, d_weight[0]


def _run(program, arrays, weight_W, num_outs: int, *, sums: bool):
    (R, W), dtype = arrays[0].shape, arrays[0].dtype
    block = pl.BlockSpec((_block(R, W), W), lambda i: (i, 0))
    row = pl.BlockSpec((1, W), lambda i: (0, 0))
    vary = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(arrays[0]).mat)
    return pl.pallas_call(
        program,
        grid=(R // _block(R, W),),
        in_specs=[block] * len(arrays) + [row],
        out_specs=[block] * num_outs + [row] * sums,
        out_shape=[vary((R, W), dtype)] * num_outs + [vary((1, W), jnp.float32)] * sums,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary" if sums else "parallel",)),
    )(*arrays, weight_W[None])


def _wide(*refs):
    return [ref[...].astype(jnp.float32) for ref in refs]


def _forward(eps, x_ref, gate_ref, weight_ref, y_ref):
    y_ref[...] = rows.forward(*_wide(x_ref, gate_ref, weight_ref), eps).astype(y_ref.dtype)


def _backward(eps, x_ref, gate_ref, dy_ref, weight_ref, dx_ref, d_gate_ref, d_weight_ref):
    x, gate, dy, weight = _wide(x_ref, gate_ref, dy_ref, weight_ref)
    dx, d_gate, d_weight = rows.backward(x, gate, weight, dy, eps)
    dx_ref[...], d_gate_ref[...] = dx.astype(dx_ref.dtype), d_gate.astype(d_gate_ref.dtype)
    total = jnp.sum(d_weight, axis=0, keepdims=True)

    @pl.when(pl.program_id(0) == 0)
    def _():
        d_weight_ref[...] = total

    @pl.when(pl.program_id(0) > 0)
    def _():
        d_weight_ref[...] += total
