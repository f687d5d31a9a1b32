"""What a pass of `gpu_scan` is: what is fixed when it is compiled, what its programs read, and their shared memory."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.lightning_attention.gpu_decay import META, TOKENS

VALUES = 64  # value columns of a program: 128 bytes, the widest swizzle


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed when a pass is compiled.

    tasks: (a, b, c), places in the arrays given to `scan`. packed: ages are given (documents or padding). readers:
    warpgroups that read; a chunk has TOKENS for each. stages: slots of the ring. joined: the arrays are one, a head's
    beside each other, (B, S, N * their number, H).
    """

    tasks: tuple[tuple[int, int, int], ...]
    reverse: bool = False
    packed: bool = False
    readers: int = 2
    stages: int = 2
    multiprocessors: int = 132
    joined: bool = False
    writes_out: bool = True
    writes_state: bool = True

    @property
    def chunk(self) -> int:
        return TOKENS * self.readers

    @property
    def loader(self) -> int:
        """Number of warpgroups that compute: readers, if any, and the writer; the loader comes after them."""
        return self.readers * self.writes_out + 1

    def blocks(self, reader: int) -> range:
        """Blocks of TOKENS tokens that a reader's tokens read inside the chunk."""
        return range(reader, self.readers) if self.reverse else range(reader + 1)

    def first_scores(self, reader: int) -> int:
        return sum(len(self.blocks(r)) for r in range(reader))


class Sizes(NamedTuple):
    """Of one launch."""

    B: int
    N: int
    H: int
    chunks: int  # of the sequence
    length: int  # chunks of a piece
    items: int
    programs: int


class Item(NamedTuple):
    """64 value columns of one head of one row, task and piece of the sequence."""

    piece: jax.Array  # int32, as are b, n, task, steps and start
    b: jax.Array
    n: jax.Array
    task: jax.Array
    columns: slice  # of H: those of this program
    steps: jax.Array  # chunks to take
    start: jax.Array  # the chunk taken first


class Inputs(NamedTuple):
    """What the programs read; None where the pass has none."""

    arrays: list[jax.Ref]  # bfloat16 (B, S, N, H) each, or one of all, joined
    skip: jax.Ref | None  # int32 (pieces, B, N), chunks to leave out at the start of a piece
    ages: jax.Ref | None  # float32 (B, chunks, chunk + META), see `gpu_decay`
    order: jax.Ref | None  # int32 (items,), the item that is taken i-th
    slope: jax.Ref  # float32 (N,)
    state: jax.Ref | None  # float32 (pieces, tasks, B, N, H, H), what enters each piece; None is zero


class Scratch(NamedTuple):
    """A program's shared memory, in the order it lies there. Slots are those of the ring, (stages, ...)."""

    a: jax.Ref | None  # bfloat16 (stages, chunk, H)
    b: jax.Ref  # bfloat16 (stages, chunk, H)
    c: jax.Ref  # bfloat16 (stages, chunk, VALUES)
    empty: jax.Ref  # barriers (stages,): readers and writer have left the slot
    full: jax.Ref  # barriers (stages,): the slot's arrays have arrived
    ages: jax.Ref | None  # float32 (stages, chunk + META)
    state_laid: jax.Ref | None  # barrier: `state` is laid out for the next chunk
    scores: jax.Ref | None  # bfloat16 (blocks that all readers read, TOKENS, TOKENS)
    state: jax.Ref | None  # bfloat16 (H, VALUES): what enters the chunk
    state_read: jax.Ref | None  # barrier: all readers are done with `state`
    written: jax.Ref  # bfloat16 (chunk, VALUES): write * c


def scratch(plan: Plan, H: int) -> Scratch:
    def tile(*shape):
        transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
        return plgpu.SMEM(shape, jnp.bfloat16, transforms=transforms)

    def with_out(x):
        return x if plan.writes_out else None

    stages, C = plan.stages, plan.chunk
    return Scratch(
        a=with_out(tile(stages, C, H)),
        b=tile(stages, C, H),
        c=tile(stages, C, VALUES),
        empty=plgpu.Barrier(num_arrivals=plan.loader, num_barriers=stages),
        full=plgpu.Barrier(num_arrivals=2 + plan.writes_out + plan.packed, num_barriers=stages),
        ages=plgpu.SMEM((stages, C + META), jnp.float32) if plan.packed else None,
        state_laid=with_out(plgpu.Barrier(num_arrivals=1)),
        scores=with_out(tile(plan.first_scores(plan.readers), TOKENS, TOKENS)),
        state=with_out(tile(H, VALUES)),
        state_read=with_out(plgpu.Barrier(num_arrivals=plan.readers)),
        written=tile(C, VALUES),
    )
