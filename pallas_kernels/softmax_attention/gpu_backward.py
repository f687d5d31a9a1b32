"""Softmax attention on Hopper, backward, in two passes, as in FlashAttention: neither holds a (queries, keys) matrix.

    P = exp(Q K' - lse)     dS = P * (dO V' - delta)     dV = P' dO     dK = dS' Q / sqrt(H)     dQ = dS K / sqrt(H)

Here is what the passes share; they are `gpu_key_gradients` and `gpu_query_gradient`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.softmax_attention import gpu_blocks as blocks
from pallas_kernels.softmax_attention.gpu_blocks import ACROSS, DOWN, HALF
from pallas_kernels.softmax_attention.gpu_items import Item
from pallas_kernels.softmax_attention.masking import Work

BLOCK = HALF  # tokens streamed past at a time


class Part(NamedTuple):
    """Rows and key heads, with all of their query heads, that a call of the kernels has to do with."""

    row: int  # the first one
    rows: int
    head: int  # the first one
    heads: int

    def whole(self, item: Item) -> Item:
        """The item as it is numbered among all rows and heads."""
        return item._replace(b=item.b + self.row, head=item.head + self.head)


class Inputs(NamedTuple):
    """What the programs read. An item's own tokens are keys in `key_gradients`, queries in `query_gradient`; the tokens
    of the other side are streamed past them.
    """

    d: jax.Ref  # bfloat16 (B, S, N, H), the gradient of the output
    delta: jax.Ref | None  # float32 (B, N, S), sum over H of d * out
    k: jax.Ref  # bfloat16 (B, T, K, H)
    lse: jax.Ref  # float32 (B, N, S)
    streamed_tags: tuple[jax.Ref, jax.Ref]  # positions and document ids, int32 (B, S) or (B, T)
    out: jax.Ref | None  # bfloat16 (B, S, N, H), from which `query_gradient` makes delta where there is none
    own_tags: tuple[jax.Ref, jax.Ref]  # positions and document ids, int32 (B, T) or (B, S)
    q: jax.Ref  # bfloat16 (B, S, N, H)
    v: jax.Ref  # bfloat16 (B, T, K, H)
    work: Work  # of the own side


class Scratch(NamedTuple):
    """A program's shared memory, in the order it lies there.

    What is of the own side is (2, HALF, ...), a part for each strip; what is streamed is (stages, BLOCK, ...), a part
    for each slot of the ring.
    """

    d: jax.Ref  # bfloat16 (..., H), of the queries' side
    delta: jax.Ref  # float32, of the queries' side
    free: jax.Ref  # barriers (stages,): both warpgroups have left the slot
    full: jax.Ref  # barriers (stages,): the slot's arrays have arrived
    k: jax.Ref  # bfloat16 (..., H), of the keys' side
    lse: jax.Ref  # float32, of the queries' side
    out: jax.Ref | None  # bfloat16 (..., H), of the queries' side
    own_tags: jax.Ref  # int32 (2, 2, HALF): of each strip the positions, the document ids
    own_free: jax.Ref  # barrier: both warpgroups have left their own arrays
    own_full: jax.Ref  # barrier: both warpgroups' own arrays have arrived
    streamed_positions: jax.Ref  # int32
    q: jax.Ref  # bfloat16 (..., H), of the queries' side
    staged: jax.Ref | None  # bfloat16 (2, HALF, H): each warpgroup's result on its way out
    streamed_documents: jax.Ref  # int32
    v: jax.Ref  # bfloat16 (..., H), of the keys' side


def scratch_of(H: int, *, stages: int, queries, keys, own_copies: int, streamed_copies: int, out=None, staged=None):
    """queries, keys: shapes before H of the two sides' arrays. A copy is one array's: with a query's or a key's, two of
    the tags; queries have q, d, lse and delta, keys k and v.
    """
    return Scratch(
        d=blocks.tile(*queries, H),
        delta=plgpu.SMEM(queries, jnp.float32),
        free=plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        full=plgpu.Barrier(num_arrivals=streamed_copies, num_barriers=stages),
        k=blocks.tile(*keys, H),
        lse=plgpu.SMEM(queries, jnp.float32),
        out=out,
        own_tags=plgpu.SMEM((2, 2, HALF), jnp.int32),
        own_free=plgpu.Barrier(num_arrivals=2),
        own_full=plgpu.Barrier(num_arrivals=own_copies),
        streamed_positions=plgpu.SMEM((stages, BLOCK), jnp.int32),
        q=blocks.tile(*queries, H),
        staged=staged,
        streamed_documents=plgpu.SMEM((stages, BLOCK), jnp.int32),
        v=blocks.tile(*keys, H),
    )


def kernel_of(program, out_type, scratch: Scratch, *, programs: int):
    return plgpu.kernel(
        program,
        out_type=out_type,
        scratch_types=[scratch],
        grid=(programs,),
        grid_names=("program",),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )


def inputs_of(arrays, own_tags, streamed_tags, work: Work) -> Inputs:
    q, k, v, d, lse, last = arrays
    delta, out = (last, None) if last.ndim == 3 else (None, last)
    tags = {"streamed_tags": streamed_tags, "own_tags": own_tags}
    return Inputs(d=d, delta=delta, k=k, lse=lse, out=out, q=q, v=v, work=work, **tags)


def taken_tags(own_tags):
    """(positions, document ids) of a warpgroup's own tokens, a value for each of its rows."""
    return tuple(plgpu.load(own_tags.at[i], layout=DOWN) for i in range(2))


def streamed_tags(smem: Scratch, slot):
    """The same of a block of the other side, a value for each column."""
    return tuple(plgpu.load(x.at[slot], layout=ACROSS) for x in (smem.streamed_positions, smem.streamed_documents))


def load_streamed_tags(inputs: Inputs, smem: Scratch, b, tokens, slot):
    for array, target in zip(inputs.streamed_tags, (smem.streamed_positions, smem.streamed_documents), strict=True):
        plgpu.copy_gmem_to_smem(array.at[b, tokens], target.at[slot], smem.full.at[slot])


def load_own(inputs: Inputs, smem: Scratch, item: Item, copies):
    """copies(own tokens): pairs of what is to be read, and the array in shared memory that has a place for it."""

    @pl.when(item.number > 0)
    def _():
        plgpu.barrier_wait(smem.own_free)

    for strip in range(2):
        for source, target in copies(item.tokens(strip)):
            plgpu.copy_gmem_to_smem(source, target.at[strip], smem.own_full)
        for i in range(2):
            tags = inputs.own_tags[i].at[item.b, item.tokens(strip)]
            plgpu.copy_gmem_to_smem(tags, smem.own_tags.at[strip, i], smem.own_full)
