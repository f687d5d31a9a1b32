"""Prefill by single pieces, of some prompts at a time: for one device, whose host then waits for nothing.

A loop whose end depends on an argument makes the host of a GPU wait for each of its turns, and a branch does; so a call
is one piece of up to `lanes` prompts, and what the model says of them is a program of its own. A small product takes
about as long as one of a few: with several lanes the pieces of several prompts are one. They are always as many, filled
up with empty ones, so a piece has the same bits whoever is beside it.

One lane reads and writes its slot where it lies (`cache.OneRow`): of a slot for a million tokens nothing is copied.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mm01_jax.inference import engine_programs, sampling
from mm01_jax.inference.engine_images import SeenAt
from mm01_jax.inference.engine_programs import Said, Slots
from mm01_jax.inference.engine_sizes import Sizes
from mm01_jax.inference.engine_turns import Work
from mm01_jax.inference.steps import take_in
from mm01_jax.model.cache import DecodeCache, OneRow
from mm01_jax.model.decoder import TextModel


class Pieces(NamedTuple):
    """index_R: slots, each another. tokens_RS: S = grid + 1, the last of them what follows. count_R: 0 changes nothing.
    seen: what images show at the tokens; None: no images are taken."""

    index_R: jax.Array
    tokens_RS: jax.Array
    count_R: jax.Array
    seen: SeenAt | None = None


class Left(NamedTuple):
    """hidden_RGD: of each token; routed: the experts that it was routed to (R, grid, L, A) where kept."""

    hidden_RGD: jax.Array
    routed: jax.Array | None


def left_like(sizes: Sizes) -> Left:
    """The structure of what a call leaves: 0 for each array."""
    return Left(0, 0 if sizes.routed_experts else None)


def prefill_lanes(model: TextModel, slots: Slots, told: Pieces, *, sizes: Sizes, specs: Slots) -> tuple[Slots, Left]:
    """Takes in a piece of each lane."""
    index_R, count_R, old = told.index_R, told.count_R, slots.cache
    taken = _taken(old.stacks, index_R)
    length_R, place_R = (jnp.where(count_R > 0, x_B[index_R], 0) for x_B in (old.lengths, slots.place_B))
    cache = DecodeCache(taken, length_R)
    x_RGD = engine_programs.embedded(model, told.tokens_RS[:, : sizes.grid], told.seen, jnp.int32(0))
    hidden_RGD, last_RD, new, stats = take_in(model, cache, x_RGD, count_R, place_R)
    if len(index_R) > 1:
        new = engine_programs.kept_where_empty(model.config, count_R, new, cache)
    stacks = _put_back(old.stacks, new.stacks, index_R)
    last_RD = jnp.where((count_R > 0)[:, None], last_RD, slots.hidden_BD[index_R])
    cache = DecodeCache(stacks, old.lengths.at[index_R].add(count_R))
    slots = slots._replace(cache=cache, hidden_BD=slots.hidden_BD.at[index_R].set(last_RD))
    routed = jnp.transpose(stats.choice, (1, 2, 0, 3)) if sizes.routed_experts else None
    return engine_programs.constrain(slots, specs), engine_programs.everywhere(Left(hidden_RGD, routed))


def _taken(stacks: tuple, index_R: jax.Array) -> tuple:
    """Rows of the stacks; one stays where it lies."""
    if len(index_R) == 1:
        return tuple(OneRow.of(stack, index_R[0]) for stack in stacks)

    def rows(array: jax.Array) -> jax.Array:
        return jnp.concatenate([lax.dynamic_slice_in_dim(array, index, 1, axis=2) for index in index_R], axis=2)

    return jax.tree.map(rows, stacks)


def _put_back(old: tuple, new: tuple, index_R: jax.Array) -> tuple:
    if len(index_R) == 1:
        return tuple(stack.whole() for stack in new)

    def put(array: jax.Array, rows: jax.Array) -> jax.Array:
        for lane, index in enumerate(index_R):  # each in place, where a scatter would turn the whole about
            array = lax.dynamic_update_slice_in_dim(array, rows[:, :, lane : lane + 1], index, axis=2)
        return array

    return jax.tree.map(put, old, new)


def say(model: TextModel, hidden_RGD: jax.Array, allowed_V: jax.Array, tokens_RS: jax.Array, *, top: int) -> Said:
    """What the model says after each token of a call (R, grid, ...)."""

    def one(told):
        hidden_GD, following_G = told
        logits_GV = model.logits(hidden_GD[None])[0]
        return sampling.log_probabilities(logits_GV, following_G, allowed_V, top)

    return engine_programs.everywhere(Said(*lax.map(one, (hidden_RGD, tokens_RS[:, 1:])), None))


def pieces_of(work: Sequence[Work], grid: int) -> list[list[Work]]:
    """The calls that some work takes, each at most a piece of each; what has less left has empty pieces."""
    count = max(-(-len(one.tokens) // grid) for one in work)
    return [[_piece(one, number * grid, grid) for one in work] for number in range(count)]


def _piece(one: Work, start: int, grid: int) -> Work:
    end = start + grid
    following = int(one.tokens[end]) if end < len(one.tokens) else one.following
    shows = None if one.shows is None or start >= len(one.tokens) else (one.shows[0], one.shows[1] + start)
    return one._replace(tokens=one.tokens[start:end], following=following, shows=shows)


def arrays_of(work: Sequence[Work], sizes: Sizes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(index, tokens, count) as `Pieces` has them; lanes without work have slots that nobody here has."""
    taken = {one.slot for one in work}
    free = (slot for slot in range(sizes.num_slots) if slot not in taken)
    index = np.array([one.slot for one in work] + [next(free) for _ in range(sizes.lanes - len(work))], np.int32)
    count = np.zeros(sizes.lanes, np.int32)
    tokens = np.zeros((sizes.lanes, sizes.grid + 1), np.int32)
    for lane, one in enumerate(work):
        count[lane] = length = len(one.tokens)
        tokens[lane, : length + 1] = [*one.tokens, one.following]
    return index, tokens, count


def joined(said: Sequence[Said], routed: Sequence[jax.Array]) -> Said:
    """What calls one behind the other say, on the host: (lanes, tokens, ...); None for what nobody wants."""

    def one(parts: Sequence[jax.Array]) -> np.ndarray | None:
        return np.concatenate([np.asarray(part) for part in parts], axis=1) if parts else None

    return Said(*(one([part[n] for part in said]) for n in range(3)), one(routed))
