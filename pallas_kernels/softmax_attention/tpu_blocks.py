"""What the TPU kernels of softmax attention share: blocks streamed from HBM, masks, products.

A program holds one block of rows; the blocks of the other side that `masking.Spans` names are brought into VMEM, the
next one on its way while this one is worked on. Hidden blocks are never read. The small numbers that a kernel needs of
its tokens come as eight rows, whatever their count, since a (8, 128) tile is what VMEM holds anyway.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import declared
from pallas_kernels.softmax_attention.masking import Index, Spans

TILE = 128  # lengths are filled up to a multiple of it
BLOCKS = (512, 256, 128)
ROWS = 8  # numbers of a token that a kernel is given, used or not
HIDDEN = -1e30


def block_of(length: int) -> int:
    return next(block for block in BLOCKS if length % block == 0)


def rows_of(*numbers: jax.Array) -> jax.Array:
    """(..., S) each -> (..., ROWS, S)."""
    stacked = jnp.stack(numbers, axis=-2)
    missing = [(0, 0)] * (stacked.ndim - 2) + [(0, ROWS - len(numbers)), (0, 0)]
    return jnp.pad(stacked, missing)


def index_rows(index: Index) -> jax.Array:
    """(B, ROWS, S) int32: positions, segments."""
    return rows_of(*index)


def call(program, outputs, spans: Spans, inputs, specs, scratch, *, grid, name: str, flops: int):
    """`pl.pallas_call` with the spans (4, B, blocks) as scalars; program(spans, *inputs, *outputs, *scratch)."""
    out_shape, out_specs = zip(*outputs, strict=True)
    kernel = pl.pallas_call(
        program,
        out_shape=list(out_shape),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, grid=grid, in_specs=specs, out_specs=list(out_specs), scratch_shapes=scratch
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * len(grid)),
        name=name,
    )
    spans = jnp.stack(spans)
    with declared.flops(flops):
        return kernel(spans, *inputs)


def own(rows: int, H: int) -> pl.BlockSpec:
    """The program's own block (rows, H) of an array (batch, heads, S, H)."""
    return pl.BlockSpec((None, None, rows, H), lambda b, n, t, _: (b, n, t, 0))


def own_rows(block: int, *, of_heads: bool) -> pl.BlockSpec:
    """ROWS numbers of the program's own tokens, (batch, ROWS, S) or with heads (batch, heads, ROWS, S)."""
    if of_heads:
        return pl.BlockSpec((None, None, ROWS, block), lambda b, n, t, _: (b, n, 0, t))
    return pl.BlockSpec((None, ROWS, block), lambda b, n, t, _: (b, 0, t))


def walk(spans_ref, copies, step, heads: int = 1):
    """step(block, slot, masked) over the span of this program, once for each of `heads`; copies(head, block, slot) are
    the copies that bring a block into a slot, done when `step` is called.
    """
    b, t = pl.program_id(0), pl.program_id(2)
    first, clear, clear_end, end = (spans_ref[i, b, t] for i in range(4))
    steps = end - first

    def start(number):
        @pl.when(number < heads * steps)
        def _():
            for copy in copies(lax.div(number, steps), first + lax.rem(number, steps), lax.rem(number, 2)):
                copy.start()

    def one(block, _, *, head, masked: bool):
        number = head * steps + block - first
        slot = lax.rem(number, 2)
        start(number + 1)
        for copy in copies(head, block, slot):
            copy.wait()
        step(block, slot, masked)

    def one_head(head, _):
        for low, high, masked in ((first, clear, True), (clear, clear_end, False), (clear_end, end, True)):
            lax.fori_loop(low, high, functools.partial(one, head=head, masked=masked), None)

    @pl.when(steps > 0)
    def _():
        start(0)
        lax.fori_loop(0, heads, one_head, None)


def seen(down_index, across_index, *, keys_down: bool):
    """The mask of (ROWS, A) tokens down and (ROWS, C) across: (A, C)."""
    columns = down_index.T
    position, segment, other, other_segment = columns[:, 0:1], columns[:, 1:2], across_index[0:1], across_index[1:2]
    return (segment == other_segment) & ((position <= other) if keys_down else (position >= other))


def scale_of(H: int) -> float:
    return 1 / math.sqrt(H)


def dot(x, y, x_axis: int, y_axis: int):
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT
    contract = (((x_axis,), (y_axis,)), ((), ()))
    return lax.dot_general(x, y, contract, precision=precision, preferred_element_type=jnp.float32)
