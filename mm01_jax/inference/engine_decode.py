"""The engine's decode: tokens of all slots, some steps in one call.

A step draws a token from the hidden of the last one, then takes it in, unless it ends its row: so the first new token,
whose hidden prefill left, is drawn as all others are.

With `drafts` = D the step takes in D guesses of what follows as well (the answer that was expected, or what followed
the same two tokens before: prompt lookup), draws after each, in the same way, the token that comes, and goes on while
that is the guess. What was not is taken back (`model/drafts.py`). Shapes are the same whether anything is guessed or
right; docs/engine.md says where the bits are, too.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mm01_jax import sharding
from mm01_jax.inference import sampling
from mm01_jax.inference.engine_programs import Slots, constrain, empty_routed, everywhere
from mm01_jax.inference.engine_sizes import Sizes
from mm01_jax.model import drafts
from mm01_jax.model.cache import DecodeCache
from mm01_jax.model.decode_step import Ringed, begin_rings, end_rings
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.lightning import Lightning
from mm01_jax.model.mixers import mixer

PLAIN, DRAWN, CUT = "plain", "drawn", "cut"  # the likeliest as it is; any settings without cuts; any settings


def how_all(samplings: Iterable[sampling.Sampling]) -> str:
    """The least that all of these are chosen by."""
    if sampling.are_plain(some := [*samplings]):
        return PLAIN
    return CUT if any(map(sampling.has_cuts, some)) else DRAWN


class Turn(NamedTuple):
    """Whose turn it is to decode: may_B bool, guesses_B bool: whether the row may be guessed, mask_BW uint32: what it
    may say (`masks.py`). A row that has ended has no turn, whoever says so: its `left` is 0."""

    may_B: jax.Array
    guesses_B: jax.Array
    mask_BW: jax.Array


class Drawn(NamedTuple):
    """New tokens (steps * (1 + drafts), B), -1 where there is none; log-probabilities of them and of the likeliest
    (..., B, T) with their ids; logits (..., B, V) and experts that each was routed to (..., B, L, A) where kept."""

    tokens: jax.Array
    logprob: jax.Array
    top_ids: jax.Array
    top_logprobs: jax.Array
    logits: jax.Array | None
    routed: jax.Array | None


def drawn_like(sizes: Sizes) -> Drawn:
    """The structure of what such an engine draws: 0 for each array."""
    return Drawn(0, 0, 0, 0, 0 if sizes.keep_logits else None, 0 if sizes.routed_experts else None)


def decode(model: TextModel, slots: Slots, turn: Turn, allowed_V, count, *, sizes: Sizes, specs: Slots, how=None):
    """`count` <= sizes.steps steps of every slot whose turn it is: (slots, Drawn).

    Args:
      count: an int32 array, or a number: then lightning layers keep their states as they were meanwhile, where that
        pays (`model/decode_step.py`).
      how: tokens of all those rows are chosen, and no hook is asked (`how_all`): the same bits for less. None: anyhow.
    """
    lengths_B = slots.cache.lengths
    if isinstance(count, int) and not sizes.drafts:
        slots = slots._replace(cache=begin_rings(model, slots.cache, count))
    N, B, config = sizes.steps * (1 + sizes.drafts), sizes.num_slots, model.config
    drawn = Drawn(
        jnp.full((N, B), -1, jnp.int32),
        jnp.zeros((N, B), jnp.float32),
        jnp.zeros((N, B, sizes.logprobs), jnp.int32),
        jnp.zeros((N, B, sizes.logprobs), jnp.float32),
        jnp.zeros((N, B, config.vocab_size), jnp.float32) if sizes.keep_logits else None,
        empty_routed((N, B), config) if sizes.routed_experts else None,
    )
    may_come = allowed_V, None if how else turn.mask_BW, how
    step = functools.partial(_step, model, may_come, turn, (sizes, specs))
    slots, drawn = lax.fori_loop(0, count, step, (slots, drawn))
    return slots._replace(cache=end_rings(model, slots.cache, lengths_B)), everywhere(drawn)


def _step(model: TextModel, may_come, turn: Turn, shape: tuple[Sizes, Slots], n, carry):
    (slots, drawn), (sizes, specs) = carry, shape
    width, draw = 1 + sizes.drafts, functools.partial(_draw, model, may_come)
    active_B = turn.may_B & (slots.left_B > 0)
    token_B, slots, drawn = draw((slots, drawn), n * width, active_B, None)
    active_B &= slots.left_B > 0
    tokens_BS = token_B[:, None]
    if sizes.drafts:
        guessed = lookup(slots.tokens_BT, slots.cache.lengths, token_B, sizes.drafts)
        tokens_BS = jnp.concatenate([tokens_BS, jnp.where(turn.guesses_B[:, None], guessed, -1)], axis=1)
    valid_BS = active_B[:, None] & (jnp.cumsum(tokens_BS < 0, axis=1) == 0)
    tokens_BS0 = jnp.where(valid_BS, tokens_BS, 0)
    hidden_BSD, cache, choice = _take_in(model, slots.cache, tokens_BS0, valid_BS, slots.place_B)
    if sizes.routed_experts:
        routed = lax.dynamic_update_slice_in_dim(drawn.routed, _by_place(choice, valid_BS.shape), n * width, axis=0)
        drawn = drawn._replace(routed=routed)
    slots = slots._replace(hidden_BD=jnp.where(active_B[:, None], hidden_BSD[:, 0], slots.hidden_BD))

    def go_on(place, carry):
        """Draws what follows the tokens before `place`, of rows that go on; those go on whose guess it is."""
        slots, drawn, taken_B, going_B = carry
        guess_B = jnp.where(going_B & valid_BS[:, place], tokens_BS[:, place], -1)
        token_B, slots, drawn = draw((slots, drawn), n * width + place, guess_B >= 0, guess_B)
        right_B = (guess_B >= 0) & (token_B == guess_B)
        slots = slots._replace(hidden_BD=jnp.where(right_B[:, None], hidden_BSD[:, place], slots.hidden_BD))
        return slots, drawn, taken_B + right_B.astype(jnp.int32), right_B & (slots.left_B > 0)

    carry = slots, drawn, active_B.astype(jnp.int32), active_B
    # A loop of no trips would be traced and compiled all the same.
    slots, drawn, taken_B, _ = lax.fori_loop(1, width, go_on, carry) if sizes.drafts else carry
    cache = _taken_back(model, slots.cache, cache, taken_B)
    slots = slots._replace(cache=cache, tokens_BT=_written(slots, tokens_BS, taken_B))
    if any(isinstance(stack, Ringed) for stack in cache.stacks):  # on one device
        return slots, drawn
    return constrain(slots, specs), drawn


def _draw(model: TextModel, may_come, carry: tuple[Slots, Drawn], place, may_B, only_B):
    """(tokens, slots, drawn): the next token of each row that may have one, noted at `place`; where it is not `only` it
    is as if none had been drawn.

    Args:
      may_come: ids that may, bool (V,), of these what each row may say, None where no hook is asked, and `how`.
    """
    (slots, drawn), (allowed_V, mask_BW, how) = carry, may_come
    plain, told = how == PLAIN, (slots.history, slots.number_B, allowed_V, mask_BW)
    logits = model.logits(sharding.constrain(slots.hidden_BD[:, None], model.rules, "batch", None, None))[:, 0]
    logits = sharding.constrain(logits, model.rules, "batch", None)
    token_B = sampling.sample(logits, None if plain else slots.rows, *told, cut=how in (CUT, None))
    stands_B = may_B if only_B is None else may_B & (token_B == only_B)
    said = sampling.log_probabilities(logits, token_B, allowed_V, drawn.top_ids.shape[2])
    new = jnp.where(stands_B, token_B, -1), *said, None if drawn.logits is None else logits
    noted = jax.tree.map(lambda all, one: all.at[place].set(one.astype(all.dtype)), drawn[:5], new)
    one_B = stands_B.astype(jnp.int32)
    history = slots.history if plain else sampling.with_token(slots.history, token_B, stands_B)
    stops_B = stands_B & jnp.any(token_B[:, None] == slots.stop_BK, axis=1)
    left_B = jnp.where(stops_B, 0, slots.left_B - one_B)
    slots = slots._replace(number_B=slots.number_B + one_B, left_B=left_B, history=history)
    return token_B, slots, Drawn(*noted, drawn.routed)


def _take_in(model: TextModel, cache: DecodeCache, tokens_BS, valid_BS, place_B=0):
    """The hidden states of some tokens, the cache with them, of which some may yet be taken back, and what experts they
    were routed to, (L, rows of the stream, 1, A), where the model tells.

    This is the engine's one call of the model's decode: rows of the stream are tokens (`model/drafts.py`).
    """
    width = tokens_BS.shape[1]
    if width > 1:
        dtype = jnp.dtype(model.compute.dtype)
        cache = _by_lightning(model, cache, lambda stack, _: drafts.begin(stack, width, dtype, model.rules))
    positions = (cache.lengths - place_B)[:, None] + jnp.arange(width, dtype=jnp.int32)[None, :]
    tokens, positions, segments = (x.reshape(-1, 1) for x in (tokens_BS, positions, jnp.where(valid_BS, 0, -1)))
    hidden, cache, stats = model.forward(model.embed_tokens(tokens), positions, segments, cache)
    return drafts.by_row(hidden, len(tokens_BS)), cache, stats.choice


def _by_place(choice_LR1A: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """(S, B, L, A) of a stream of B * S rows."""
    L, _, _, A = choice_LR1A.shape
    return jnp.transpose(choice_LR1A.reshape(L, *shape, A), (2, 1, 0, 3))


def _taken_back(model: TextModel, old: DecodeCache, new: DecodeCache, taken_B) -> DecodeCache:
    """The cache with the first `taken` of each row's tokens alone."""

    def ended(stack, slopes):
        is_open = isinstance(stack, drafts.Drafts)
        return drafts.end(stack, slopes, taken_B, model.config, model.rules) if is_open else stack

    return DecodeCache(_by_lightning(model, new, ended).stacks, old.lengths + taken_B)


def _by_lightning(model: TextModel, cache: DecodeCache, change) -> DecodeCache:
    """change(stack, its slopes) of the stacks of lightning layers."""
    told = zip(model.config.stacks, cache.stacks, model.slopes(), strict=True)
    stacks = [
        change(stack, slopes) if mixer(kind, model.config) is Lightning else stack for (kind, _), stack, slopes in told
    ]
    return DecodeCache(tuple(stacks), cache.lengths)


def lookup(tokens_BT: jax.Array, length_B: jax.Array, token_B: jax.Array, count: int) -> jax.Array:
    """(B, count) int32: what is expected to follow `token`, -1 where nothing is.

    That is what stands behind it where it comes as expected, else what followed it and the one before where both stood
    last.

    Args:
      tokens_BT: a row's tokens so far in its first `length` places, then those that were expected, then -1. token_B:
        the one after them.
    """
    T = tokens_BT.shape[1]
    at_T, rows_B1 = jnp.arange(T, dtype=jnp.int32), jnp.arange(len(token_B))[:, None]
    last_B1 = tokens_BT[rows_B1, jnp.maximum(length_B - 1, 0)[:, None]]
    before_BT = jnp.concatenate([jnp.full_like(last_B1, -1), tokens_BT[:, :-1]], axis=1)
    same_BT = (tokens_BT == token_B[:, None]) & (before_BT == last_B1) & (at_T[None, :] < length_B[:, None])
    found_B = jnp.max(jnp.where(same_BT, at_T[None, :], -1), axis=1)
    next_BD = jnp.arange(1, 1 + count, dtype=jnp.int32)[None, :]
    seen_BD, ahead_BD = found_B[:, None] + next_BD, length_B[:, None] + next_BD
    as_expected_B1 = tokens_BT[rows_B1, jnp.minimum(length_B, T - 1)[:, None]] == token_B[:, None]
    known_BD = (found_B >= 0)[:, None] & (seen_BD < length_B[:, None])
    seen_BD = jnp.where(known_BD, tokens_BT[rows_B1, jnp.minimum(seen_BD, T - 1)], -1)
    ahead_BD = jnp.where(ahead_BD < T, tokens_BT[rows_B1, jnp.minimum(ahead_BD, T - 1)], -1)
    return jnp.where(as_expected_B1, ahead_BD, seen_BD)


def _written(slots: Slots, tokens_BS: jax.Array, taken_B: jax.Array) -> jax.Array:
    """The slots' tokens with those that were taken in; nothing where no tokens are kept."""
    place_BS = jnp.arange(tokens_BS.shape[1], dtype=jnp.int32)[None, :]
    past_the_end = slots.tokens_BT.shape[1]  # dropped
    at_BS = jnp.where(place_BS < taken_B[:, None], slots.cache.lengths[:, None] + place_BS, past_the_end)
    return slots.tokens_BT.at[jnp.arange(len(taken_B))[:, None], at_BS].set(tokens_BS, mode="drop")
