"""What a model computes on given ids, every position of it: float32 logits, and the states of its lightning layers.

On the mesh that the model lies on, some rows and some positions at a time, as prefill takes them in.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from mm01_jax import sharding
from mm01_jax.inference import views
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.lightning import Lightning
from mm01_jax.model.mixers import MIXERS, constrain_cache, empty_cache
from mm01_jax.model.multimodal import VLModel
from mm01_jax.progress import saying

CHUNK = 256  # positions of a row on one shard of the sequence whose logits exist at a time


def logits_and_states(model: TextModel | VLModel, ids_BS: np.ndarray) -> dict[str, np.ndarray]:
    """`logits` (B, S, V), `state_<layer>` (B, N, H key, H value) of each lightning layer; all float32.

    Every process of the mesh calls it alike and gets all of it.

    Args:
      ids_BS: whole numbers of the vocabulary.
    """
    model, mesh = views.answering(model), sharding.mesh_of(model)
    rows, shards = (math.prod(mesh.shape[axis] for axis in axes) for axes in (model.rules.batch, model.rules.seq))
    length = -(-ids_BS.shape[1] // shards) * shards
    chunk, parts = min(CHUNK * shards, length), []
    for first in range(0, len(ids_BS), rows):
        ids = ids_BS[first : first + rows]
        with jax.set_mesh(mesh):
            cache = _new_cache(model.config, model.compute, model.rules, rows, length)
            taken = []
            for start in range(0, length, chunk):
                tokens = np.zeros((rows, chunk), np.int32)
                tokens[: len(ids), : ids[:, start : start + chunk].shape[1]] = ids[:, start : start + chunk]
                count = np.zeros(rows, np.int32)
                count[: len(ids)] = min(chunk, ids_BS.shape[1] - start)
                placed = sharding.put(tokens, model.rules, "batch", "seq"), sharding.put(count, model.rules, "batch")
                with saying(f"logits: positions from {start:,} on"):
                    logits, cache = _take_in(model, cache, *placed)
                taken.append(np.asarray(logits)[: len(ids)])
            states = {name: np.asarray(state)[: len(ids)] for name, state in _states(model.config, cache).items()}
        parts.append({"logits": np.concatenate(taken, axis=1)[:, : ids_BS.shape[1]], **states})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


_new_cache = jax.jit(empty_cache, static_argnums=(0, 1, 2, 3, 4))


@functools.partial(jax.jit, donate_argnums=1)
def _take_in(model, cache, tokens_BS, count_B):
    """(logits (B, S, V) on every device, the cache) of the next positions of each row."""
    at_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1], dtype=jnp.int32)[None, :], tokens_BS.shape)
    segments = jnp.where(at_BS < count_B[:, None], 0, -1)
    hidden, cache, _ = model.forward(model.embed_tokens(tokens_BS), cache.lengths[:, None] + at_BS, segments, cache)
    logits = jax.lax.with_sharding_constraint(model.logits(hidden), jax.P())
    return logits, constrain_cache(cache, model.config, model.rules)


@functools.partial(jax.jit, static_argnums=0)
def _states(config, cache) -> dict[str, jax.Array]:
    """By global layer, on every device."""
    found, first = {}, 0
    for (kind, count), stack in zip(config.stacks, cache.stacks, strict=True):
        if MIXERS[kind] is Lightning:
            for period in range(config.num_periods):
                for layer in range(count):
                    name = f"state_{period * len(config.period) + first + layer}"
                    found[name] = jax.lax.with_sharding_constraint(stack[period, layer], jax.P())
        first += count
    return found
