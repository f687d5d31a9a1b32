"""What the TPU kernels of softmax attention share: blocks streamed from HBM, masks, products.

A program holds one block of tokens; the blocks of the other side that `masking.Spans` names are brought into VMEM, the
next one on its way while this one is worked on. Hidden blocks are never read. The small numbers that a kernel needs of
its tokens come as eight lines, whatever their count, since a (8, 128) tile is what VMEM holds anyway.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import declared
from pallas_kernels.precision import matmul_precision
from pallas_kernels.softmax_attention.masking import Spans, Tags

TILE = 128  # lengths are filled up to a multiple of it
BLOCKS = (512, 256, 128)
LINES = 8  # numbers of a token that a kernel is given, used or not
HIDDEN = -1e30


def block_of(length: int) -> int:
    return next(block for block in BLOCKS if length % block == 0)


def lines_of(*numbers: jax.Array) -> jax.Array:
    """(..., S) each -> (..., LINES, S)."""
    stacked = jnp.stack(numbers, axis=-2)
    missing = [(0, 0)] * (stacked.ndim - 2) + [(0, LINES - len(numbers)), (0, 0)]
    return jnp.pad(stacked, missing)


def tag_lines(tags: Tags) -> jax.Array:
    """(B, LINES, S) int32: positions, document ids."""
    return lines_of(*tags)


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
        cost_estimate=declared.cost(flops, *inputs, *out_shape),
        name=name,
    )
    spans = jnp.stack(spans)
    with declared.flops(flops):
        return kernel(spans, *inputs)


def own(block: int, H: int) -> pl.BlockSpec:
    """The program's own block (tokens, H) of an array (batch, heads, S, H)."""
    return pl.BlockSpec((None, None, block, H), lambda b, n, t, _: (b, n, t, 0))


def own_lines(block: int, *, of_heads: bool) -> pl.BlockSpec:
    """The LINES numbers of the program's own tokens, of (batch, LINES, S) or with heads (batch, heads, LINES, S)."""
    if of_heads:
        return pl.BlockSpec((None, None, LINES, block), lambda b, n, t, _: (b, n, 0, t))
    return pl.BlockSpec((None, LINES, block), lambda b, n, t, _: (b, 0, t))


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


def visible(down_tags, across_tags, *, keys_down: bool):
    """The mask of tokens down and tokens across, (LINES, A) and (LINES, C): (A, C)."""
    columns = down_tags.T
    position, document = columns[:, 0:1], columns[:, 1:2]
    across_position, across_document = across_tags[0:1], across_tags[1:2]
    same = document == across_document
    return same & ((position <= across_position) if keys_down else (position >= across_position))


def scale_of(H: int) -> float:
    return 1 / math.sqrt(H)


def dot(x, y, x_axis: int, y_axis: int):
    contract = (((x_axis,), (y_axis,)), ((), ()))
    return lax.dot_general(x, y, contract, precision=matmul_precision(x.dtype), preferred_element_type=jnp.float32)
