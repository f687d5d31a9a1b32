"""A sequence split into time segments that run side by side, exactly: partial states, then a prefix.

A head's state at the end of segment g is decay_g S_g + P_g, with S_g the state that enters and P_g the state the
segment makes from nothing. So one cheap pass makes every P_g, the recurrence over the few segments makes every S_g, and
the full pass then runs all segments at once. In P_g a token weighs exp(-slope * distance to the segment's end), which
is exactly 0 in float32 from a distance of 104 / slope on: the cheap pass leaves out the chunks before.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.lightning_attention import packing
from pallas_kernels.lightning_attention.gpu_decay import DOCUMENT, META, PAD

UNDERFLOW = 104.0  # exp(-104) is below half of the smallest float32
CHUNKS = 16  # fewest chunks worth a segment of their own
FULL = 0.9  # share of the chip's multiprocessors at work that is good enough


def segments(programs: int, chunks: int, multiprocessors: int) -> int:
    """The fewest time segments that fill the chip; `programs` run side by side without a split."""

    def busy(count):
        waves = -(-programs * count // multiprocessors)
        return programs * count / (waves * multiprocessors)

    counts = range(1, max(1, min(chunks // CHUNKS, multiprocessors)) + 1)
    return next((count for count in counts if busy(count) >= FULL), max(counts, key=busy))


@dataclasses.dataclass(frozen=True)
class Chunks:
    """What is known of every chunk boundary: int32 (B or 1, chunks + 1), from the start of the sequence to its end."""

    age: jax.Array
    begun: jax.Array  # documents begun after the first


def plain_chunks(S: int, chunk: int) -> Chunks:
    age = jnp.arange(0, S + 1, chunk, dtype=jnp.int32)[None]
    return Chunks(age, jnp.zeros_like(age))


def packed_chunks(documents: packing.Documents, chunk: int) -> tuple[Chunks, jax.Array]:
    """The boundaries, and the keys of `gpu_scan`: (B, chunks, chunk + META) float32. S is a multiple of the chunk."""
    B, S = documents.age.shape
    starts_BS = documents.valid & (documents.first == documents.age)
    begun_BS = jnp.cumsum(starts_BS, axis=1, dtype=jnp.int32)

    def boundaries(x_BS):
        return jnp.concatenate([jnp.zeros_like(x_BS[:, :1]), x_BS[:, chunk - 1 :: chunk]], axis=1)

    known = Chunks(boundaries(documents.age), boundaries(begun_BS))

    def since_entry(x_BS, at):
        return x_BS.reshape(B, S // chunk, chunk) - at[:, :-1, None]

    running = since_entry(documents.age, known.age) + DOCUMENT * since_entry(begun_BS, known.begun)
    valid = documents.valid.reshape(B, S // chunk, chunk)
    end = jnp.broadcast_to(running[..., -1:], (B, S // chunk, META))
    keys = jnp.concatenate([jnp.where(valid, running, PAD), end], axis=-1)
    return known, keys.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Split:
    """The segments' decays (segments, B, N), and how many far chunks a segment's partial state leaves out."""

    decay: jax.Array
    skip_forward: jax.Array  # int32, chunks at a segment's start that its end does not see
    skip_reverse: jax.Array  # int32, chunks at a segment's end whose gradient does not reach its start


def split(chunks: Chunks, count: int, slope_N, B: int) -> Split:
    number = chunks.age.shape[1] - 1
    per_segment = -(-number // count)
    edges = np.minimum(np.arange(count + 1) * per_segment, number)
    within = np.minimum(edges[:-1, None] + np.arange(per_segment + 1), edges[1:, None])  # (segments, chunks + 1)
    real = (np.arange(per_segment) < (edges[1:] - edges[:-1])[:, None])[..., None, None]
    # The last segment's end state and the first one's start gradient come from the full pass.
    first, last = (np.arange(count)[:, None, None, None] == g for g in (0, count - 1))
    age, begun = (jnp.moveaxis(x[:, within], 0, -1)[..., None] for x in (chunks.age, chunks.begun))
    slope, reach = slope_N[None, None], (UNDERFLOW / slope_N)[None, None, None]
    same = begun[:, -1] == begun[:, 0]
    decay = jnp.where(same, jnp.exp(-slope * (age[:, -1] - age[:, 0]).astype(jnp.float32)), jnp.float32(0))
    before = ((age[:, -1:] - age[:, 1:]).astype(jnp.float32) > reach) | (begun[:, 1:] < begun[:, -1:]) | last
    after = ((age[:, :-1] - age[:, :1]).astype(jnp.float32) > reach) | (begun[:, :-1] > begun[:, :1]) | first
    skips = (jnp.sum(real & unseen, axis=1, dtype=jnp.int32) for unseen in (before, after))
    shape = (count, B, slope_N.shape[0])
    return Split(*(jnp.broadcast_to(x, shape) for x in (decay, *skips)))


def prefix(decay, partial, entering, *, reverse: bool):
    """The states that enter the segments, (segments, B, N, H, H), from the partial states and what enters the first."""
    states = [entering]
    order = range(len(decay) - 1)
    for g in (g + 1 for g in reversed(order)) if reverse else order:
        states.append(decay[g][..., None, None] * states[-1] + partial[g])
    return jnp.stack(states[::-1] if reverse else states)
