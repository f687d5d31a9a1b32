"""How far decode in bfloat16 drifts from a fresh prefill, with slopes of the released model: its first layer, which
forgets fastest, one in the middle, and the last lightning layer but one's, whose slowest head remembers 20,000 tokens.

Everything is judged by the same weights in float32, taken in at once.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mm01_jax import sharding
from mm01_jax.config import ComputeConfig, MeshConfig, ModelConfig
from mm01_jax.inference import views
from mm01_jax.model.cache import DecodeCache
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.lightning import slopes
from mm01_jax.model.mixers import empty_cache

jit = jax.jit  # tests put one here that compiles faster
HEADS, LAYERS, SHOWN = 64, 80, (0, 40, 78)  # of the released model; the layers whose slopes are taken


class Slopes(TextModel):
    """Three lightning layers with these slopes, and a softmax layer."""

    def slopes(self) -> list[jax.Array]:
        chosen = slopes(HEADS, LAYERS)[list(SHOWN)]
        return [jnp.asarray(chosen)[None], jnp.zeros((1, 1, HEADS), jnp.float32)]


class Taken(NamedTuple):
    """After some tokens: states (3, B, N, H, H), and the logits (B, V) that follow the last."""

    states: np.ndarray
    logits: np.ndarray


def make(width: int, head_dim: int) -> Slopes:
    """Such a model of bfloat16 weights."""
    config = ModelConfig(
        vocab_size=320,
        embed_dim=width,
        num_periods=1,
        period=("lightning", "lightning", "lightning", "softmax"),
        num_heads=HEADS,
        num_kv_heads=8,
        head_dim=head_dim,
        rotary_dim=head_dim // 2,
        rope_theta=10_000_000.0,
        num_experts=4,
        num_experts_per_token=2,
        expert_dim=width,
        lightning_alpha=3.5,
        softmax_alpha=3.5,
        experts_alpha=3.5,
    )
    compute = ComputeConfig(dtype="bfloat16", param_dtype="bfloat16", remat="none")
    with jax.set_mesh(sharding.make_mesh(MeshConfig(), jax.devices()[:1])):
        make = jit(lambda key: Slopes(config, compute, MeshConfig().rules, rngs=nnx.Rngs(key)))
        return views.answering(make(jax.random.key(0, impl="rbg")))


def take_in(model: Slopes, tokens_BS: np.ndarray, chunk: int) -> Taken:
    """All tokens, `chunk` in a call of the model's forward with a cache: 1 is decode."""
    B, S = tokens_BS.shape

    def whole(model, tokens_BS):
        def step(cache, tokens_BC):
            places = cache.lengths[:, None] + jnp.arange(chunk, dtype=jnp.int32)[None]
            segments = jnp.zeros((B, chunk), jnp.int32)
            hidden, cache, _ = model.forward(model.embed_tokens(tokens_BC), places, segments, cache)
            return cache, hidden[:, -1:]

        cache: DecodeCache = empty_cache(model.config, model.compute, model.rules, B, S)
        cache, hidden = jax.lax.scan(step, cache, jnp.moveaxis(tokens_BS.reshape(B, -1, chunk), 1, 0))
        return cache.stacks[0][0], model.logits(hidden[-1])[:, 0]

    with jax.set_mesh(sharding.mesh_of(model)):
        return Taken(*map(np.asarray, jit(whole)(model, jnp.asarray(tokens_BS, jnp.int32))))


def errors(found: Taken, exact: Taken) -> dict[str, float]:
    """Of each layer's states, the largest of a head, relative in the Frobenius norm; of the logits, in their spread."""

    def norm(x):
        return np.sqrt((x.astype(np.float64) ** 2).sum(axis=(-2, -1)))

    each = (norm(found.states - exact.states) / norm(exact.states)).max(axis=(1, 2))
    spread = float(exact.logits.std())
    named = {f"state of layer {layer}": float(error) for layer, error in zip(SHOWN, each, strict=True)}
    return named | {"logits": float(np.abs(found.logits - exact.logits).max()) / spread}


def measure(
    width: int, head_dim: int, count: int, chunks: dict[str, int], rows: int = 2
) -> Iterator[tuple[str, dict[str, float]]]:
    """(name, errors) of each way to take in `count` tokens in bfloat16, so many in a call."""
    tokens = np.random.default_rng(0).integers(320, size=(rows, count))
    model = make(width, head_dim)
    exact = take_in(views.computing(model, dtype="float32"), tokens, count)
    for name, chunk in chunks.items():
        yield name, errors(take_in(model, tokens, chunk), exact)
