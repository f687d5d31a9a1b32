"""Few rows times the matrices of one layer on a TPU; every column block of every matrix is a step of the grid.

The pipeline copies a block where its place differs from the step's before, so a matrix whose turn it is not names the
block that it had last, or will have first, and nothing is read of it.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import declared, dispatch
from pallas_kernels.precision import matmul_precision

LANES = 128
WIDTHS = (512, 256, LANES)  # columns of a block: of these the first that all matrices have whole
DEPTH = 2048  # numbers of a row that a block multiplies, at most
VMEM = 48 * 2**20


def unsupported(x_RD, matrices, layer) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del layer
    if dispatch.platform() != "tpu":
        return f"the code is for {dispatch.platform()}, not for a TPU"
    widths = [matrix.shape[2] for matrix in matrices]
    if x_RD.shape[1] % LANES or any(width % LANES for width in widths):
        return f"D and F must be multiples of {LANES}, got D={x_RD.shape[1]}, F={widths}"
    return None


def forward(x_RD, matrices, layer, dtype):
    """Contract in the package's docstring."""
    R, D = x_RD.shape
    widths = [matrix.shape[2] for matrix in matrices]
    width = next(width for width in WIDTHS if all(columns % width == 0 for columns in widths))
    depth = deepest(D, DEPTH)
    starts = [sum(widths[:number]) // width for number in range(len(widths))]
    ends = [start + columns // width for start, columns in zip(starts, widths, strict=True)]
    deeps = D // depth

    def block(start: int, end: int):
        def place(column, deep, layer):
            mine = jnp.clip(column, start, end - 1)
            turn = jnp.where(column < start, 0, jnp.where(column >= end, deeps - 1, deep))
            return layer[0], turn, mine - start

        return pl.BlockSpec((None, depth, width), place)

    out = jax.ShapeDtypeStruct((R, sum(widths)), dtype)
    return pl.pallas_call(
        functools.partial(_kernel, starts, ends),
        out_shape=out,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(ends[-1], deeps),
            in_specs=[
                pl.BlockSpec((R, D), lambda column, deep, layer: (0, 0)),
                *(block(start, end) for start, end in zip(starts, ends, strict=True)),
            ],
            out_specs=pl.BlockSpec((R, width), lambda column, deep, layer: (0, column)),
            scratch_shapes=[pltpu.VMEM((R, width), jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM),
        cost_estimate=declared.cost(2 * R * D * sum(widths), x_RD, *(matrix[0] for matrix in matrices), out),
        name="projection_step",
    )(layer, x_RD, *matrices)


def parts(x_RD, matrix_LDF, layer):
    """Contract in the package's docstring."""
    return forward(x_RD, [matrix_LDF], layer, jnp.float32)[None]


def deepest(size: int, most: int) -> int:
    """The largest multiple of LANES up to `most` that divides a size which is one."""
    return max(depth for depth in range(LANES, min(size, most) + 1, LANES) if size % depth == 0)


def _kernel(starts, ends, _layer, x_ref, *refs):
    *matrices, out_ref, total_ref = refs
    column, deep, depth = pl.program_id(0), pl.program_id(1), matrices[0].shape[0]
    some = pl.ds(pl.multiple_of(deep * depth, LANES), depth)

    @pl.when(deep == 0)
    def _():
        total_ref[...] = jnp.zeros_like(total_ref)

    for start, end, matrix in zip(starts, ends, matrices, strict=True):

        @pl.when((column >= start) & (column < end))
        def _(matrix=matrix):
            precision = matmul_precision(x_ref.dtype)
            product = jnp.dot(x_ref[:, some], matrix[...], precision=precision, preferred_element_type=jnp.float32)
            total_ref[...] += product

    @pl.when(deep == pl.num_programs(1) - 1)
    def _():
        out_ref[...] = total_ref[...].astype(out_ref.dtype)
