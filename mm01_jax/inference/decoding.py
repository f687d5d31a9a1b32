"""From prompts to new tokens: prefill, then decode.

Prefill runs the prompt through the model in chunks, decode one token at a time; both are the model's one forward with
a cache, which is allocated once and donated from call to call.
"""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mm01_jax.inference.sampling import Sampling, sample
from mm01_jax.model.cache import DecodeCache
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.mixers import empty_cache

PREFILL_CHUNK = 512
DECODE_BLOCK = 16  # tokens decoded on the device between two looks by the host


@functools.partial(jax.jit, donate_argnums=1)
def prefill(
    model: TextModel, cache: DecodeCache, tokens_BS: jax.Array, count_B: jax.Array
) -> tuple[jax.Array, DecodeCache]:
    """Takes in the first `count_B` tokens of each row; the rest of the row is padding.

    Returns:
      (hidden (B, D) of each row's last token here, the cache). Rows with count 0 change nothing.
    """
    index_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1], dtype=jnp.int32)[None, :], tokens_BS.shape)
    segments = jnp.where(index_BS < count_B[:, None], 0, -1)
    hidden, cache, _ = model.forward(model.embed_tokens(tokens_BS), cache.lengths[:, None] + index_BS, segments, cache)
    last = jnp.maximum(count_B - 1, 0)[:, None, None]
    return jnp.take_along_axis(hidden, last, axis=1)[:, 0], cache


def decode_step(
    model: TextModel, cache: DecodeCache, token_B: jax.Array, active_B: jax.Array
) -> tuple[jax.Array, DecodeCache]:
    """One token a row -> (float32 logits (B, V), the cache). Rows that are not active keep their cache."""
    segments = jnp.where(active_B, 0, -1)[:, None]
    hidden, cache, _ = model.forward(model.embed_tokens(token_B[:, None]), cache.lengths[:, None], segments, cache)
    return model.logits(hidden)[:, 0], cache


@functools.partial(jax.jit, static_argnames=("sampling", "stop", "count"), donate_argnums=1)
def decode_block(model, cache, token_B, done_B, key, allowed_V, *, sampling: Sampling, stop: int, count: int):
    """Decodes up to `count` tokens a row on the device.

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
    model: TextModel,
    prompts: Sequence[np.ndarray],
    *,
    max_tokens: int,
    sampling: Sampling,
    key: jax.Array,
    stop: int,
    vocab_size: int,
) -> Iterator[np.ndarray]:
    """Yields blocks (B, n) of new token ids, `stop` after a row's end; at most `max_tokens` a row.

    Args:
      prompts: one int array of at least one token per row; lengths may differ.
      vocab_size: ids of the tokenizer; rows of the table beyond it are never chosen.

    Raises:
      ValueError: an empty prompt, an id outside the vocabulary, max_tokens below 1.
    """
    _check(model, prompts, max_tokens)
    lengths = np.array([len(p) for p in prompts], np.int32)
    size = int(lengths.max()) + max_tokens
    cache = jax.jit(lambda: empty_cache(model.config, model.compute, model.rules, len(prompts), size))()
    hidden, cache = _prefill_all(model, cache, prompts, lengths)
    allowed = jnp.any(model.embed[...] != 0, axis=1) & (jnp.arange(model.config.vocab_size) < vocab_size)
    first, *keys = jax.random.split(key, 1 + -(-max_tokens // DECODE_BLOCK))
    logits = jax.jit(lambda model, h: model.logits(h[:, None])[:, 0])(model, hidden)
    token = jax.jit(sample, static_argnames="sampling")(logits, first, allowed, sampling=sampling)
    done = token == stop
    yield np.asarray(token)[:, None]
    left = max_tokens - 1
    for block_key in keys:
        if left <= 0 or bool(done.all()):
            return
        block = functools.partial(decode_block, sampling=sampling, stop=stop, count=min(DECODE_BLOCK, left))
        tokens, (cache, token, done) = block(model, cache, token, done, block_key, allowed)
        left -= tokens.shape[1]
        yield np.asarray(tokens)


def _prefill_all(model, cache, prompts, lengths):
    """(hidden (B, D) of each prompt's last token, the cache), chunk by chunk; short rows wait as padding."""
    chunk = min(PREFILL_CHUNK, 1 << (int(lengths.max()) - 1).bit_length())
    hidden = None
    for start in range(0, int(lengths.max()), chunk):
        tokens = np.zeros((len(prompts), chunk), np.int32)
        count = np.clip(lengths - start, 0, chunk)
        for row, prompt in enumerate(prompts):
            tokens[row, : count[row]] = prompt[start : start + chunk]
        chunk_hidden, cache = prefill(model, cache, jnp.asarray(tokens), jnp.asarray(count))
        hidden = chunk_hidden if hidden is None else jnp.where((count > 0)[:, None], chunk_hidden, hidden)
    return hidden, cache


def _check(model: TextModel, prompts: Sequence[np.ndarray], max_tokens: int) -> None:
    if max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens} must be at least 1")
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {row} is empty; at least one token is needed")
        if int(np.min(prompt)) < 0 or int(np.max(prompt)) >= model.config.vocab_size:
            bad = int(np.max(prompt)) if int(np.min(prompt)) >= 0 else int(np.min(prompt))
            raise ValueError(f"prompt {row} has id {bad}; allowed are 0 to {model.config.vocab_size - 1}")
