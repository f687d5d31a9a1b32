"""One call of the model as answering makes it: a stretch of a prompt, one token of every row.

The engine's programs are made of these; `plan` compiles them, the benches time them. Both are the model's one forward
with a cache.
"""

import functools

import jax
import jax.numpy as jnp

from mm01_jax import sharding
from mm01_jax.model.cache import DecodeCache
from mm01_jax.model.decode_step import constrained
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.mixers import constrain_cache
from mm01_jax.model.multimodal import VLModel
from mm01_jax.parallel.experts.layer import RouterStats

CHUNK = 512  # tokens of a row on one shard of the sequence, in a call that has no reason to take another number


def take_in(
    model: TextModel | VLModel,
    cache: DecodeCache,
    x_BSD: jax.Array,
    count_B: jax.Array,
    place_B: jax.Array | int = 0,
) -> tuple[jax.Array, jax.Array, DecodeCache, RouterStats]:
    """Takes in the first `count_B` embeddings of each row; the rest of the row is padding.

    Args:
      place_B: which place of the cache is position 0.
    Returns:
      (hidden (B, S, D), that of each row's last token here (B, D), the cache, laid out as the forward left it, and
      what the routers did).
    """
    at_BS = jnp.broadcast_to(jnp.arange(x_BSD.shape[1], dtype=jnp.int32)[None, :], x_BSD.shape[:2])
    segments = jnp.where(at_BS < count_B[:, None], 0, -1)
    hidden, cache, stats = model.forward(x_BSD, (cache.lengths - place_B)[:, None] + at_BS, segments, cache)
    last = jnp.maximum(count_B - 1, 0)[:, None, None]
    last_BD = sharding.constrain(jnp.take_along_axis(hidden, last, axis=1)[:, 0], model.rules, "batch", None)
    return hidden, last_BD, cache, stats


@functools.partial(jax.jit, donate_argnums=1)
def prefill(
    model: TextModel | VLModel,
    cache: DecodeCache,
    tokens_BS: jax.Array,
    count_B: jax.Array,
    features_BTPD: jax.Array | None = None,
    index_BS: jax.Array | None = None,
) -> tuple[jax.Array, DecodeCache]:
    """The same of tokens, and of a VLModel's images (`VLModel.features`, `VLModel.place`).

    Returns:
      (hidden (B, D) of each row's last token here, the cache). Rows with count 0 change nothing.
    """
    x = model.embed_tokens(tokens_BS) if features_BTPD is None else model.place(tokens_BS, features_BTPD, index_BS)
    _, last_BD, cache, _ = take_in(model, cache, x, count_B)
    return last_BD, constrain_cache(cache, model.config, model.rules)


def decode_step(
    model: TextModel | VLModel, cache: DecodeCache, token_B: jax.Array, active_B: jax.Array
) -> tuple[jax.Array, DecodeCache]:
    """One token a row -> (float32 logits (B, V), the cache). Rows that are not active keep their cache."""
    segments = jnp.where(active_B, 0, -1)[:, None]
    hidden, cache, _ = model.forward(model.embed_tokens(token_B[:, None]), cache.lengths[:, None], segments, cache)
    return model.logits(hidden)[:, 0], constrained(model, cache)
