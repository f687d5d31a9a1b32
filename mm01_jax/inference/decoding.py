"""From prompts to new tokens: prefill, then decode.

Prefill runs the prompt through the model in chunks, decode one token at a time; both are the model's one forward with
a cache, which is allocated once and donated from call to call.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mm01_jax.inference.sampling import Sampling, sample
from mm01_jax.model.cache import DecodeCache
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.mixers import empty_cache
from mm01_jax.model.multimodal import VLModel

PREFILL_CHUNK = 512
DECODE_BLOCK = 16  # tokens decoded on the device between two looks by the host


class Images(NamedTuple):
    """What the image tokens of prompts show.

    tiles: (B, T, 3, side, side) float32, the normalised tiles of each prompt's images, padded to T. index: one index
    table (data/image_grid.py) as long as its prompt for each.
    """

    tiles: np.ndarray
    index: Sequence[np.ndarray]


@functools.partial(jax.jit, donate_argnums=1)
def prefill(
    model: TextModel | VLModel,
    cache: DecodeCache,
    tokens_BS: jax.Array,
    count_B: jax.Array,
    features_BTPD: jax.Array | None = None,
    index_BS: jax.Array | None = None,
) -> tuple[jax.Array, DecodeCache]:
    """Takes in the first `count_B` tokens of each row; the rest of the row is padding.

    Args:
      features_BTPD, index_BS: of a VLModel's images (`VLModel.features`, `VLModel.place`); None where there are none.
    Returns:
      (hidden (B, D) of each row's last token here, the cache). Rows with count 0 change nothing.
    """
    at_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1], dtype=jnp.int32)[None, :], tokens_BS.shape)
    segments = jnp.where(at_BS < count_B[:, None], 0, -1)
    x = model.embed_tokens(tokens_BS) if features_BTPD is None else model.place(tokens_BS, features_BTPD, index_BS)
    hidden, cache, _ = model.forward(x, cache.lengths[:, None] + at_BS, segments, cache)
    last = jnp.maximum(count_B - 1, 0)[:, None, None]
    return jnp.take_along_axis(hidden, last, axis=1)[:, 0], cache


def decode_step(
    model: TextModel, cache: DecodeCache, token_B: jax.Array, active_B: jax.Array
) -> tuple[jax.Array, DecodeCache]:
    """One token a row -> (float32 logits (B, V), the cache). Rows that are not active keep their cache."""
    segments = jnp.where(active_B, 0, -1)[:, None]
    hidden, cache, _ = model.forward(model.embed_tokens(token_B[:, None]), cache.lengths[:, None], segments, cache)
    return model.logits(hidden)[:, 0], cache


@functools.partial(jax.jit, static_argnames=("sampling", "stop", "vocab_size"))
def first_token(model: TextModel, hidden_BD: jax.Array, key, *, sampling: Sampling, stop: int, vocab_size: int):
    """(token (B,) after the prompts, whether it is `stop` (B,), ids that may be chosen (V,))."""
    allowed_V = jnp.any(model.embed[...] != 0, axis=1) & (jnp.arange(model.config.vocab_size) < vocab_size)
    token_B = sample(model.logits(hidden_BD[:, None])[:, 0], key, allowed_V, sampling)
    return token_B, token_B == stop, allowed_V


@functools.partial(jax.jit, static_argnames=("sampling", "stop", "count"), donate_argnums=1)
def decode_block(model, cache, token_B, done_B, key, allowed_V, *, sampling: Sampling, stop: int, count: int):
    """Decodes `count` tokens a row on the device.

    Args:
      token_B: the last token of each row, not yet in the cache. done_B: rows that have stopped.
    Returns:
      (tokens (B, count), stop where a row had stopped; the carry for the next block).
    """

    def step(carry, key):
        cache, token, done = carry
        logits, cache = decode_step(model, cache, token, ~done)
        token = jnp.where(done, stop, sample(logits, key, allowed_V, sampling))
        return (cache, token, done | (token == stop)), token

    (cache, token, done), tokens = jax.lax.scan(step, (cache, token_B, done_B), jax.random.split(key, count))
    return tokens.T, (cache, token, done)


def generate(
    model: TextModel | VLModel,
    prompts: Sequence[np.ndarray],
    *,
    images: Images | None = None,
    max_tokens: int,
    sampling: Sampling,
    key: jax.Array,
    stop: int,
    vocab_size: int,
) -> Iterator[np.ndarray]:
    """Yields blocks (B, n) of new token ids, `stop` after a row's end; at most `max_tokens` a row.

    Args:
      prompts: one int array of at least one token per row; lengths may differ.
      images: of a VLModel's prompts, in which each image's token stands as often as the image takes tokens.
      vocab_size: ids of the tokenizer; rows of the table beyond it are never chosen.

    Raises:
      ValueError: an empty prompt, an id outside the vocabulary, max_tokens below 1, an index table of another length.
    """
    _check(model, prompts, max_tokens)
    _check_images(model, prompts, images)
    lengths = np.array([len(p) for p in prompts], np.int32)
    size = int(lengths.max()) + max_tokens
    cache = jax.jit(lambda: empty_cache(model.config, model.compute, model.rules, len(prompts), size))()
    hidden, cache = _prefill_all(model, cache, prompts, lengths, images)
    first, *keys = jax.random.split(key, 1 + -(-max_tokens // DECODE_BLOCK))
    token, done, allowed = first_token(model, hidden, first, sampling=sampling, stop=stop, vocab_size=vocab_size)
    yield np.asarray(token)[:, None]
    left = max_tokens - 1
    for block_key in keys:
        if left <= 0 or np.asarray(done).all():
            return
        # The last block is whole too, and cut here: one of its own length would be a program more.
        block = functools.partial(decode_block, sampling=sampling, stop=stop, count=DECODE_BLOCK)
        tokens, (cache, token, done) = block(model, cache, token, done, block_key, allowed)
        yield np.asarray(tokens)[:, :left]
        left -= DECODE_BLOCK


def _prefill_all(model, cache, prompts, lengths, images: Images | None):
    """(hidden (B, D) of each prompt's last token, the cache), chunk by chunk; short rows wait as padding.

    The tower runs once, before the first chunk.
    """
    features = None if images is None else jax.jit(lambda model, tiles: model.features(tiles))(model, images.tiles)
    chunk = min(PREFILL_CHUNK, 1 << (int(lengths.max()) - 1).bit_length())
    hidden = None
    for start in range(0, int(lengths.max()), chunk):
        count = np.clip(lengths - start, 0, chunk)
        tokens = jnp.asarray(_chunk(prompts, start, chunk, padding=0))
        placed = () if images is None else (features, jnp.asarray(_chunk(images.index, start, chunk, padding=-1)))
        chunk_hidden, cache = prefill(model, cache, tokens, jnp.asarray(count), *placed)
        hidden = chunk_hidden if hidden is None else jnp.where((count > 0)[:, None], chunk_hidden, hidden)
    return hidden, cache


def _chunk(rows: Sequence[np.ndarray], start: int, length: int, padding: int) -> np.ndarray:
    """(B, length) int32 of rows from `start` on."""
    out = np.full((len(rows), length), padding, np.int32)
    for row, values in zip(out, rows, strict=True):
        part = values[start : start + length]
        row[: len(part)] = part
    return out


def _check_images(model: TextModel | VLModel, prompts: Sequence[np.ndarray], images: Images | None) -> None:
    if images is None:
        return
    if not isinstance(model, VLModel):
        raise ValueError("images were given to a model without a vision tower; it takes text alone")
    lengths = [[len(row) for row in rows] for rows in (prompts, images.index)]
    if lengths[0] != lengths[1]:
        raise ValueError(
            f"index tables of {lengths[1]} tokens for prompts of {lengths[0]}; each has its prompt's length"
        )


def _check(model: TextModel | VLModel, prompts: Sequence[np.ndarray], max_tokens: int) -> None:
    if max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens} must be at least 1")
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {row} is empty; at least one token is needed")
        if int(np.min(prompt)) < 0 or int(np.max(prompt)) >= model.config.vocab_size:
            bad = int(np.max(prompt)) if int(np.min(prompt)) >= 0 else int(np.min(prompt))
            raise ValueError(f"prompt {row} has id {bad}; allowed are 0 to {model.config.vocab_size - 1}")
