"""From prompts to new tokens: prefill, then decode.

Prefill runs the prompt through the model in chunks, decode one token at a time; both are the model's one forward with
a cache, which is allocated once and donated from call to call.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mm01_jax import sharding
from mm01_jax.inference import views
from mm01_jax.inference.engine_programs import allowed_ids
from mm01_jax.inference.nonfinite import report_texts
from mm01_jax.inference.sampling import History, Rows, Sampling, are_plain, check_seed, rows, sample, with_token
from mm01_jax.inference.steps import CHUNK, decode_step, prefill
from mm01_jax.model.cache import DecodeCache
from mm01_jax.model.decode_step import begin_rings, end_rings
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.mixers import constrain_cache, empty_cache
from mm01_jax.model.multimodal import VLModel
from pallas_kernels import dispatch

DECODE_BLOCK = 16  # tokens decoded on the device between two looks by the host
NOT_FINITE = -2  # the token where logits are no numbers; no id, and not what `stop_K` has for none
_CACHE_STEP = 256


class Images(NamedTuple):
    """What the image tokens of prompts show.

    tiles: (B, T, 3, side, side) float32, the normalised tiles of each prompt's images, padded to T. index: one index
    table (data/image_grid.py) as long as its prompt for each.
    """

    tiles: np.ndarray
    index: Sequence[np.ndarray]


def check_prompts(model: TextModel | VLModel, prompts: Sequence[np.ndarray], max_tokens: int) -> None:
    if max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens} must be at least 1")
    if not len(prompts):
        raise ValueError("no prompt; at least one is needed")
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {row} is empty; at least one token is needed")
        if int(np.min(prompt)) < 0 or int(np.max(prompt)) >= model.config.vocab_size:
            bad = int(np.max(prompt)) if int(np.min(prompt)) >= 0 else int(np.min(prompt))
            raise ValueError(f"prompt {row} has id {bad}; allowed are 0 to {model.config.vocab_size - 1}")


def check_images(model: TextModel | VLModel, prompts: Sequence[np.ndarray], images: Images | None) -> None:
    if images is None:
        return
    if not isinstance(model, VLModel):
        raise ValueError("images were given to a model without a vision tower; it takes text alone")
    lengths = [[len(row) for row in rows] for rows in (prompts, images.index)]
    if lengths[0] != lengths[1]:
        raise ValueError(
            f"index tables of {lengths[1]} tokens for prompts of {lengths[0]}; each has its prompt's length"
        )


class Answers(NamedTuple):
    """Where decoding is.

    cache: without token_B (B,), the last token of each row. done_B: rows that have stopped. number_B: int32, new tokens
    that each row has, token_B among them. history: what the penalties count, token_B among it.
    """

    cache: DecodeCache | None
    token_B: jax.Array
    done_B: jax.Array
    number_B: jax.Array
    history: History


class Draw(NamedTuple):
    """What tokens are drawn with, beside their logits.

    rows: None where all `are_plain`. allowed_V: ids that may be chosen. stop_K: ids that end a row, -1 for none.
    """

    rows: Rows | None
    allowed_V: jax.Array
    stop_K: jax.Array


@functools.partial(jax.jit, static_argnames="count", donate_argnums=1)
def decode_block(model, answers: Answers, draw: Draw, *, count: int) -> tuple[jax.Array, jax.Array, Answers]:
    """Decodes `count` tokens a row: (tokens (B, count), its last where a row had stopped; done_B; the answers)."""

    text, before = model.text if isinstance(model, VLModel) else model, answers.cache
    begun = answers._replace(cache=begin_rings(text, before, count))

    def step(answers: Answers, _):
        logits, cache = decode_step(model, answers.cache, answers.token_B, ~answers.done_B)
        answers = _taken(answers._replace(cache=cache), logits, draw)
        return answers, answers.token_B

    answers, tokens = jax.lax.scan(step, begun, length=count)
    cache, small = end_rings(text, answers.cache, before.lengths), _everywhere(answers[1:4])
    return _everywhere(tokens.T), small[1], Answers(cache, *small, _as_rows(answers.history, model.rules))


def _taken(answers: Answers, logits_BV: jax.Array, draw: Draw) -> Answers:
    """The answers with one more token in every row that has not stopped; one whose logits are not finite stops."""
    _, last, done, number, history = answers
    token = jnp.where(done, last, sample(logits_BV, draw.rows, history, number, draw.allowed_V))
    broken = ~done & ~jnp.isfinite(logits_BV).all(axis=1)
    token = jnp.where(broken, NOT_FINITE, token)
    if draw.rows is not None:  # else nobody asks what was counted
        history = with_token(history, token, ~done & ~broken)
    done |= broken | jnp.any(token[:, None] == draw.stop_K[None, :], axis=1)
    return Answers(answers.cache, token, done, number + 1, history)


@functools.partial(jax.jit, donate_argnums=1)
def first_token(model, answers: Answers, hidden_BD: jax.Array, draw: Draw) -> Answers:
    """Answers that have no cache, with the first new token of each row, from what prefill returned."""
    logits = model.logits(sharding.constrain(hidden_BD[:, None], model.rules, "batch", None, None))[:, 0]
    answers = _taken(answers, logits, draw)
    return Answers(None, *_everywhere(answers[1:4]), _as_rows(answers.history, model.rules))


def _as_rows(history: History, rules) -> History:
    return jax.tree.map(lambda x: sharding.constrain(x, rules, "batch", None), history)


def _everywhere[Tree](tree: Tree) -> Tree:
    """Arrays whole on every device, so that each process can read them."""
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, jax.P()), tree)


_new_cache = jax.jit(empty_cache, static_argnums=(0, 1, 2, 3, 4))
_cache_as = jax.jit(constrain_cache, static_argnums=(1, 2))
_features = jax.jit(lambda model, tiles: model.features(tiles))
_latest = jax.jit(lambda count_B, new_BD, old_BD: jnp.where((count_B > 0)[:, None], new_BD, old_BD))


def generate(
    model: TextModel | VLModel,
    prompts: Sequence[np.ndarray],
    *,
    images: Images | None = None,
    max_tokens: int = 256,
    sampling: Sampling | Sequence[Sampling] | None = None,
    seed: int | Sequence[int] = 0,
    stop: int | Sequence[int] = (),
    vocab_size: int | None = None,
) -> Iterator[np.ndarray]:
    """Yields blocks (B, n) of new token ids, a row's last one again after its end; at most `max_tokens` a row.

    It runs on the mesh that the model lies on: rows over `data` and `expert` (rows without a prompt fill them up),
    heads over `tensor`, positions of a prompt over `sequence`. Every process of the mesh calls it alike, and gets all
    rows. Experts never drop a token here (`views.answering`).

    Args:
      prompts: one int array of at least one token per row; lengths may differ.
      images: of a VLModel's prompts, in which each image's token stands as often as the image takes tokens.
      sampling: for all prompts or for each; None is `Sampling()`.
      seed: for each prompt; one seed is the first prompt's, and prompt i has i more. Tokens follow from a prompt and
        its seed, whatever else is in the batch.
      stop: the ids that end a text.
      vocab_size: ids of the tokenizer; rows of the table beyond it are never chosen. None: all of the model's.

    Raises:
      ValueError: no prompt or an empty one, an id outside the vocabulary, max_tokens below 1, an index table of another
        length, sampling or seeds of another number than prompts.
    """
    check_prompts(model, prompts, max_tokens)
    check_images(model, prompts, images)
    choices = [sampling or Sampling()] * len(prompts) if isinstance(sampling, Sampling | None) else list(sampling)
    seeds = [seed + row for row in range(len(prompts))] if isinstance(seed, int) else list(seed)
    stops = [stop] if isinstance(stop, int) else list(stop)
    for name, values in (("sampling", choices), ("seed", seeds)):
        if len(values) != len(prompts):
            raise ValueError(f"{name}: got {len(values)} for {len(prompts)} prompts; allowed: one, or one for each")
    drawn = [*map(check_seed, seeds)], choices, np.array(stops or [-1], np.int32), vocab_size or model.config.vocab_size
    return _blocks(views.answering(model), prompts, images, max_tokens, drawn)


def _blocks(model, prompts, images: Images | None, max_tokens: int, drawn) -> Iterator[np.ndarray]:
    """The mesh is in force while the device is asked for something, not while a block is with the caller."""
    mesh = sharding.mesh_of(model)
    decoder = views.decoding(model, mesh)
    num_rows = _multiple(len(prompts), mesh, decoder.rules.batch)
    lengths = np.array([len(p) for p in prompts] + [0] * (num_rows - len(prompts)), np.int32)
    with jax.set_mesh(mesh):
        hidden, cache = _prefill_all(model, prompts, lengths, images, int(lengths.max()) + max_tokens)
        if decoder is not model:
            cache = _cache_as(cache, decoder.config, decoder.rules)
        answers, draw = _begin(decoder, prompts, lengths, drawn)
        answers = first_token(decoder, answers, hidden, draw)._replace(cache=cache)
        tokens, done = np.array(answers.token_B)[:, None], np.asarray(answers.done_B)
    blocks = [tokens]
    _check_finite(model, prompts, blocks)
    written = 1
    yield tokens[: len(prompts)]
    while written < max_tokens and not done.all():
        with jax.set_mesh(mesh):
            tokens, done, answers = decode_block(decoder, answers, draw, count=DECODE_BLOCK)
            tokens, done = np.asarray(tokens), np.asarray(done)
        blocks.append(tokens)
        _check_finite(model, prompts, blocks)
        yield tokens[: len(prompts), : max_tokens - written]  # the last block is whole, too, and cut here
        written += DECODE_BLOCK


def _check_finite(model, prompts, blocks: list[np.ndarray]) -> None:
    """Raises nonfinite.NotFinite where a row has stopped because its logits were no numbers."""
    if not (blocks[-1] == NOT_FINITE).any():
        return
    tokens = np.concatenate(blocks, axis=1)
    report_texts(model, [[*prompt, *row[row != NOT_FINITE]] for prompt, row in zip(prompts, tokens, strict=False)])


def _begin(decoder, prompts, lengths: np.ndarray, drawn) -> tuple[Answers, Draw]:
    """Answers without a cache and a token, and what they are drawn with; rows without a prompt have stopped."""
    seeds, choices, stop_K, vocab_size = drawn
    empty = len(lengths) - len(prompts)
    settings = None if are_plain(choices) else rows([*choices, *[Sampling()] * empty], [*seeds, *[0] * empty])
    seen_BV = np.zeros((len(lengths), decoder.embed.shape[0]), np.bool_)
    for row, prompt in enumerate(prompts):
        seen_BV[row, prompt] = True
    rules, none_B = decoder.rules, np.zeros(len(lengths), np.int32)
    history = (sharding.put(x, rules, "batch", None) for x in (seen_BV, np.zeros(seen_BV.shape, np.int32)))
    small = (sharding.put(x, rules, None) for x in (none_B, lengths == 0, none_B))
    return Answers(None, *small, History(*history)), Draw(settings, allowed_ids(decoder, vocab_size), stop_K)


def _prefill_all(model, prompts, lengths: np.ndarray, images: Images | None, max_length: int):
    """(hidden (B, D) of each prompt's last token, the cache), chunk by chunk; short rows wait as padding.

    The tower runs once, before the first chunk.
    """
    mesh, rules = jax.sharding.get_mesh(), model.rules
    cache = _new_cache(model.config, model.compute, rules, len(lengths), _bucket(max_length))
    shards, longest = _multiple(1, mesh, rules.seq), int(lengths.max())
    features = None
    if images is not None:
        features = _features(model, sharding.put(_fill_up(images.tiles, len(lengths), shards), rules, "batch", "seq"))
    many = 16_384 // len(lengths) if dispatch.platform() == "gpu" else 0  # products of many rows are faster there
    chunk = _multiple(min(max(CHUNK, many) * shards, 1 << (longest - 1).bit_length()), mesh, rules.seq)
    hidden = None
    for start in range(0, longest, chunk):
        count = sharding.put(np.clip(lengths - start, 0, chunk).astype(np.int32), rules, "batch")
        rows = [(prompts, 0)] if images is None else [(prompts, 0), (images.index, -1)]
        tokens, *index = (
            sharding.put(_chunk(ids, len(lengths), start, chunk, padding), rules, "batch", "seq")
            for ids, padding in rows
        )
        chunk_hidden, cache = prefill(model, cache, tokens, count, *(() if images is None else (features, *index)))
        hidden = chunk_hidden if hidden is None else _latest(count, chunk_hidden, hidden)
    return hidden, cache


def _multiple(count: int, mesh: jax.sharding.Mesh, axes: tuple[str, ...]) -> int:
    """The first multiple of the shards of these axes that is not below `count`."""
    shards = math.prod(mesh.shape[axis] for axis in axes)
    return -(-count // shards) * shards


def _bucket(length: int) -> int:
    """Lengths of a cache, few enough that texts of like lengths share a program."""
    return -(-length // _CACHE_STEP) * _CACHE_STEP if length > _CACHE_STEP else 1 << (length - 1).bit_length()


def _fill_up(tiles: np.ndarray, num_rows: int, shards: int) -> np.ndarray:
    """Tiles (B, T, ...) with empty ones behind, up to the rows and a multiple of the sequence shards."""
    B, T = tiles.shape[:2]
    return np.pad(tiles, [(0, num_rows - B), (0, -T % shards)] + [(0, 0)] * (tiles.ndim - 2))


def _chunk(rows: Sequence[np.ndarray], num_rows: int, start: int, length: int, padding: int) -> np.ndarray:
    """(num_rows, length) int32 of rows from `start` on."""
    out = np.full((num_rows, length), padding, np.int32)
    for row, values in zip(out, rows, strict=False):
        part = values[start : start + length]
        row[: len(part)] = part
    return out
