"""Softmax attention on Hopper, backward, in two passes, as in FlashAttention: neither holds a (queries, keys) matrix.

    P = exp(Q K' - lse)     dS = P * (dO V' - delta)     dV = P' dO     dK = dS' Q / sqrt(H)     dQ = dS K / sqrt(H)

Here is what the passes share; they are `gpu_key_gradients` and `gpu_query_gradient`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.softmax_attention import gpu_blocks as blocks
from pallas_kernels.softmax_attention.gpu_blocks import ACROSS, DOWN, HALF, TILE
from pallas_kernels.softmax_attention.masking import Spans, longest_first

BLOCK = 64  # tokens streamed past at a time
STAGES = 2


class Inputs(NamedTuple):
    """What the programs read. An item's own tokens are keys in `key_gradients`, queries in `query_gradient`; the tokens
    of the other side are streamed past them.
    """

    d: jax.Ref  # bfloat16 (B, S, N, H), the gradient of the output
    delta: jax.Ref  # float32 (B, N, S), sum over H of d * out
    k: jax.Ref  # bfloat16 (B, T, K, H)
    lse: jax.Ref  # float32 (B, N, S)
    order: jax.Ref  # int32 (B * tiles of the own side,), `masking.longest_first`
    streamed_tags: tuple[jax.Ref, jax.Ref]  # positions and document ids, int32 (B, S) or (B, T)
    own_tags: tuple[jax.Ref, jax.Ref]  # positions and document ids, int32 (B, T) or (B, S)
    q: jax.Ref  # bfloat16 (B, S, N, H)
    spans: jax.Ref  # int32 (4, B, tiles of the own side), `masking.query_spans` or `masking.key_spans`
    v: jax.Ref  # bfloat16 (B, T, K, H)


class Scratch(NamedTuple):
    """A program's shared memory, in the order it lies there.

    What is of the own side is (items at hand, 2, HALF, ...), a part for each warpgroup; what is streamed is (STAGES,
    BLOCK, ...), a part for each slot of the ring.
    """

    d: jax.Ref  # bfloat16 (..., H), of the queries' side
    delta: jax.Ref  # float32, of the queries' side
    free: jax.Ref  # barriers (STAGES,): both warpgroups have left the slot
    full: jax.Ref  # barriers (STAGES,): the slot's arrays have arrived
    k: jax.Ref  # bfloat16 (..., H), of the keys' side
    lse: jax.Ref  # float32, of the queries' side
    own_tags: jax.Ref  # int32 (items at hand, 2, 2, HALF): of each warpgroup's tokens the positions, the document ids
    own_free: jax.Ref  # barriers (items at hand,): both warpgroups' results have left
    own_full: jax.Ref  # barriers (items at hand,): both warpgroups' own arrays have arrived
    streamed_positions: jax.Ref  # int32
    q: jax.Ref  # bfloat16 (..., H), of the queries' side
    streamed_documents: jax.Ref  # int32
    v: jax.Ref  # bfloat16 (..., H), of the keys' side


class Item(NamedTuple):
    """What a program has to do with 128 own tokens of one head, and where in its work that stands."""

    b: jax.Array
    head: jax.Array
    t: jax.Array  # the own side's tile
    span: blocks.Span
    steps: jax.Array
    number: jax.Array | int = 0  # of this program's items
    done: jax.Array | int = 0  # blocks of the items before

    def own(self, warpgroup):
        return pl.ds(self.t * TILE + warpgroup * HALF, HALF)

    def buffer(self, smem: Scratch):
        return lax.rem(self.number, jnp.int32(smem.own_tags.shape[0]))


def scratch_of(H: int, *, queries, keys, own_copies: int, streamed_copies: int) -> Scratch:
    """queries, keys: shapes before H of the two sides' arrays. A copy is one array's: with a query's or a key's, two of
    the tags; queries have q, d, lse and delta, keys k and v.
    """
    buffers = max(queries, keys, key=len)[0]
    return Scratch(
        d=blocks.tile(*queries, H),
        delta=plgpu.SMEM(queries, jnp.float32),
        free=plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
        full=plgpu.Barrier(num_arrivals=streamed_copies, num_barriers=STAGES),
        k=blocks.tile(*keys, H),
        lse=plgpu.SMEM(queries, jnp.float32),
        own_tags=plgpu.SMEM((buffers, 2, 2, HALF), jnp.int32),
        own_free=plgpu.Barrier(num_arrivals=2, num_barriers=buffers),
        own_full=plgpu.Barrier(num_arrivals=own_copies, num_barriers=buffers),
        streamed_positions=plgpu.SMEM((STAGES, BLOCK), jnp.int32),
        q=blocks.tile(*queries, H),
        streamed_documents=plgpu.SMEM((STAGES, BLOCK), jnp.int32),
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


def inputs_of(arrays, own_tags, streamed_tags, spans: Spans) -> Inputs:
    q, k, v, d, lse, delta = arrays
    tags = {"streamed_tags": streamed_tags, "own_tags": own_tags}
    order, table = longest_first(spans), jnp.stack(spans)
    return Inputs(d=d, delta=delta, k=k, lse=lse, order=order, q=q, spans=table, v=v, **tags)


def each_item(inputs: Inputs, items: int, programs: int, heads: int, steps_of, body):
    """body(item) for every item of this program; items beside each other are heads of the same tokens."""
    tiles = inputs.spans.shape[2]

    def item_of(index) -> Item:
        b, t = blocks.place(inputs.order, lax.div(index, jnp.int32(heads)), tiles)
        span = blocks.Span.of(inputs.spans, b, t)
        return Item(b, lax.rem(index, jnp.int32(heads)), t, span, steps_of(span))

    blocks.each_item(items, programs, item_of, lambda number, item, done: body(item._replace(number=number, done=done)))


def visible(smem: Scratch, own_tags, slot, *, keys_down: bool):
    """(HALF, BLOCK): the mask, own tokens down and a block's across."""
    streamed_tags = (smem.streamed_positions, smem.streamed_documents)
    position, document = (blocks.down(plgpu.load(own_tags.at[i], layout=DOWN), BLOCK) for i in range(2))
    streamed_position, streamed_document = (
        blocks.across(plgpu.load(tags.at[slot], layout=ACROSS), HALF) for tags in streamed_tags
    )
    same = document == streamed_document
    return same & ((position <= streamed_position) if keys_down else (position >= streamed_position))


def load_streamed_tags(inputs: Inputs, smem: Scratch, b, tokens, slot):
    for array, target in zip(inputs.streamed_tags, (smem.streamed_positions, smem.streamed_documents), strict=True):
        plgpu.copy_gmem_to_smem(array.at[b, tokens], target.at[slot], smem.full.at[slot])


def load_own(inputs: Inputs, smem: Scratch, item: Item, copies):
    """copies(own tokens): pairs of what is to be read, and the array in shared memory that has a place for it."""
    buffer, full = item.buffer(smem), smem.own_full.at[item.buffer(smem)]

    @pl.when(item.number >= smem.own_tags.shape[0])
    def _():
        plgpu.barrier_wait(smem.own_free.at[buffer])

    for half in range(2):
        for source, target in copies(item.own(half)):
            plgpu.copy_gmem_to_smem(source, target.at[buffer, half], full)
        for i in range(2):
            tags = inputs.own_tags[i].at[item.b, item.own(half)]
            plgpu.copy_gmem_to_smem(tags, smem.own_tags.at[buffer, half, i], full)
