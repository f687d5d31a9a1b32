"""A sequence split into time segments that run side by side, exactly: partial states, then a prefix.

A head's state at the end of segment g is decay_g S_g + P_g, with S_g the state that enters and P_g the state the
segment makes from nothing. So one cheap pass makes every P_g, the recurrence over the few segments makes every S_g, and
the full pass then runs all segments at once. In P_g a token weighs exp(-slope * distance to the segment's end), which
is exactly 0 in float32 from a distance of 104 / slope on: the cheap pass leaves out the chunks before. Slow heads then
have far more chunks than fast ones. So that no program waits for another's slow head, the cheap pass takes a segment in
several parts, P_g being their weighted sum, and the longest parts first.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.lightning_attention import ages
from pallas_kernels.lightning_attention.gpu_decay import DOCUMENT, META, PAD

UNDERFLOW = 104.0  # exp(-104) is below half of the smallest float32
CHUNKS = 16  # fewest chunks worth a segment of their own
PART = 32  # and a part of its own in the cheap pass: its state weighs as much as a chunk of two tensors
PARTS = 8  # most parts of a segment
FULL = 0.9  # share of the chip's multiprocessors at work that is good enough


@dataclasses.dataclass(frozen=True)
class Cut:
    """`segments` time segments of `parts` parts of `part` chunks each; the last ones may be short, parts empty."""

    segments: int
    parts: int
    part: int


def cut(programs: int, chunks: int, multiprocessors: int) -> Cut:
    """The fewest time segments that fill the chip; `programs` run side by side without a split."""

    def busy(count):
        waves = -(-programs * count // multiprocessors)
        return programs * count / (waves * multiprocessors)

    counts = range(1, max(1, min(chunks // CHUNKS, multiprocessors)) + 1)
    count = next((count for count in counts if busy(count) >= FULL), max(counts, key=busy))
    length = -(-chunks // count)
    parts = max(1, min(PARTS, length // PART)) if count > 1 else 1
    part = -(-length // parts)
    return Cut(-(-chunks // (parts * part)), parts, part)


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Of every chunk boundary: int32 (B or 1, chunks + 1), from the start of the sequence to its end."""

    age: jax.Array
    begun: jax.Array  # documents begun after the first


def plain_chunks(S: int, chunk: int) -> Chunks:
    age = jnp.arange(0, S + 1, chunk, dtype=jnp.int32)[None]
    return Chunks(age, jnp.zeros_like(age))


def packed_chunks(documents: ages.Documents, chunk: int) -> tuple[Chunks, jax.Array]:
    """The boundaries, and the ages of `gpu_scan`: (B, chunks, chunk + META) float32. S is a multiple of the chunk."""
    B, S = documents.age.shape
    starts_BS = documents.valid & (documents.first == documents.age)
    begun_BS = jnp.cumsum(starts_BS, axis=1, dtype=jnp.int32)

    def boundaries(x_BS):
        return jnp.concatenate([jnp.zeros_like(x_BS[:, :1]), x_BS[:, chunk - 1 :: chunk]], axis=1)

    chunks = Chunks(boundaries(documents.age), boundaries(begun_BS))

    def since_entry(x_BS, at):
        return x_BS.reshape(B, S // chunk, chunk) - at[:, :-1, None]

    running = since_entry(documents.age, chunks.age) + DOCUMENT * since_entry(begun_BS, chunks.begun)
    valid = documents.valid.reshape(B, S // chunk, chunk)
    end = jnp.broadcast_to(running[..., -1:], (B, S // chunk, META))
    chunk_ages = jnp.concatenate([jnp.where(valid, running, PAD), end], axis=-1)
    return chunks, chunk_ages.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Direction:
    """What the cheap pass leaves out, and how its parts add up, forward or backward in time: (pieces, B, N).

    skip: int32, chunks at a part's far end that do not reach the segment's near end. steps: int32, the chunks left.
    weight: float32, decay from the part's near end to the segment's.
    """

    skip: jax.Array
    steps: jax.Array
    weight: jax.Array


@dataclasses.dataclass(frozen=True)
class Split:
    """The segments' decays (segments, B, N), and the cheap pass in both directions."""

    cut: Cut
    decay: jax.Array
    forward: Direction
    reverse: Direction


def split(chunks: Chunks, cut: Cut, slope_N, B: int, *, needless: bool = True) -> Split:
    """needless: the last segment's end state and the first one's start gradient are left to the full pass."""
    number = chunks.age.shape[1] - 1
    pieces = cut.segments * cut.parts
    edges = np.minimum(np.arange(pieces + 1) * cut.part, number)
    within = np.minimum(edges[:-1, None] + np.arange(cut.part + 1), edges[1:, None])  # (pieces, part + 1)
    length, ends = edges[1:] - edges[:-1], edges[:: cut.parts]
    real = (np.arange(cut.part) < length[:, None])[..., None, None]
    segment = np.arange(pieces) // cut.parts
    left_out = [np.broadcast_to(needless & (segment == g), (1, 1, 1, pieces)).T for g in (cut.segments - 1, 0)]

    def at(indices):
        """(age, documents begun) at chunk boundaries: (*indices.shape, B or 1, 1)."""
        return [jnp.moveaxis(x[:, indices], 0, -1)[..., None] for x in (chunks.age, chunks.begun)]

    def decay(from_age, from_begun, to_age, to_begun):
        faded = jnp.exp(-slope_N[None, None] * (to_age - from_age).astype(jnp.float32))
        return jnp.where(to_begun == from_begun, faded, jnp.float32(0))

    def far(distance):
        return distance.astype(jnp.float32) > (UNDERFLOW / slope_N)[None, None, None]

    def direction(unseen, weight):
        skip = jnp.sum(real & unseen, axis=1, dtype=jnp.int32)
        shape = (pieces, B, slope_N.shape[0])
        left = jnp.asarray(length, jnp.int32)[:, None, None] - skip
        return Direction(*(jnp.broadcast_to(x, shape) for x in (skip, left, weight)))

    age, begun = at(within)
    (start_age, start_begun), (end_age, end_begun) = at(ends[segment]), at(ends[segment + 1])
    before = far(end_age[:, None] - age[:, 1:]) | (begun[:, 1:] < end_begun[:, None]) | left_out[0]
    after = far(age[:, :-1] - start_age[:, None]) | (begun[:, :-1] > start_begun[:, None]) | left_out[1]
    whole = jnp.broadcast_to(decay(*at(ends[:-1]), *at(ends[1:])), (cut.segments, B, slope_N.shape[0]))
    return Split(
        cut,
        whole,
        direction(before, decay(age[:, -1], begun[:, -1], end_age, end_begun)),
        direction(after, decay(start_age, start_begun, age[:, 0], begun[:, 0])),
    )


def longest_first(steps) -> jax.Array:
    """The items' order for `gpu_scan`, those of most steps first: dealt round, the programs then end together."""
    steps = steps.reshape(-1)
    return jax.lax.sort((-steps, jnp.arange(steps.size, dtype=jnp.int32)), num_keys=1)[1]


def passed_on(split: Split, partial, first, *, reverse: bool) -> jax.Array:
    """The states that enter the segments, in the order of time, and the one that leaves them behind the others:
    (segments + 1, B, N, H, H).

    From the parts' states (pieces, B, N, H, H), of which those without steps are not looked at, and the state that
    enters the first segment, None for zero.
    """
    way = split.reverse if reverse else split.forward
    weighted = jnp.where((way.steps > 0)[..., None, None], way.weight[..., None, None] * partial, jnp.float32(0))
    partial = weighted.reshape(split.cut.segments, split.cut.parts, *partial.shape[1:]).sum(axis=1)
    states = [jnp.zeros_like(partial[0]) if first is None else first]
    for g in reversed(range(split.cut.segments)) if reverse else range(split.cut.segments):
        states.append(split.decay[g][..., None, None] * states[-1] + partial[g])
    return jnp.stack((states[-2::-1] if reverse else states[:-1]) + states[-1:])
