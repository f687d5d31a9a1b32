"""Deterministic answers: a decode step's logits have the bits of training's forward over the packed row."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax.config import MeshConfig
from mm01_jax.inference import sampling, steps, views
from mm01_jax.model import deterministic
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.mixers import empty_cache
from mm01_jax.sharding import make_mesh
from pallas_kernels.lightning_attention import xla
from tests import small
from tests.slow import slow_but

VARIANT = small.variant(
    num_periods=2, period=("lightning", "lightning", "softmax"), num_heads=4, num_kv_heads=2, num_experts=8
)
LENGTH = 2000
# Documents begin anywhere: at chunks' edges and inside, two in one chunk, one of a single token.
STARTS = (0, 37, 256, 300, 301, 512, 727, 900, 1100, 1279, 1500, 1756, 1999)


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with small.one_device():
        yield


@functools.cache
def row() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, positions, segments) of one packed row."""
    tokens = np.random.default_rng(0).integers(0, small.MODEL.vocab_size, LENGTH).astype(np.int32)
    segments = np.searchsorted(STARTS, np.arange(LENGTH), side="right").astype(np.int32) - 1
    return tokens, (np.arange(LENGTH) - np.array(STARTS)[segments]).astype(np.int32), segments


@functools.cache
def trained(dtype: str) -> tuple[TextModel, np.ndarray]:
    """(a model, its logits of the row as training computes it)."""
    model = small.model(VARIANT.replace(dtype=dtype, param_dtype=dtype), seed=1)
    forward = jax.jit(lambda model, *row: model(*row))
    return model, np.asarray(forward(model, *(x[None] for x in row())))[0]


@functools.partial(jax.jit, donate_argnums=1)
def step(view, cache, token_B, position_B, active_B):
    """(logits (B, V), log-probabilities (B,) of the tokens themselves, the cache)."""
    segments = jnp.where(active_B, 0, -1)[:, None]
    hidden, cache, _ = view.forward(view.embed_tokens(token_B[:, None]), position_B[:, None], segments, cache)
    logits, allowed = view.logits(hidden)[:, 0], jnp.ones(small.MODEL.vocab_size, jnp.bool_)
    return logits, sampling.log_probabilities(logits, token_B, allowed, 1)[0], cache


def new_cache(view, starts):
    cache = jax.jit(lambda: empty_cache(view.config, view.compute, view.rules, len(starts), LENGTH))()
    return dataclasses.replace(cache, lengths=jnp.array(starts, jnp.int32))


@pytest.mark.parametrize("dtype", slow_but(("float32",), ("float32", "bfloat16")))
def test_every_token_of_a_packed_row_has_the_bits_of_the_training_forward(dtype):
    """Each document in a row of the cache of its own, one token at a time; rows end and the others go on."""
    model, want = trained(dtype)
    view, (tokens, *_) = views.deterministic(model), row()
    starts, ends = np.array(STARTS), np.array([*STARTS[1:], LENGTH])
    cache, got, nats = new_cache(view, starts), np.full_like(want, np.nan), np.full(LENGTH, np.nan, np.float32)
    for position in range(max(ends - starts)):
        active, places = starts + position < ends, np.minimum(starts + position, LENGTH - 1)
        arrays = tokens[places], np.full(len(starts), position, np.int32), active
        logits, chosen, cache = step(view, cache, *arrays)
        got[places[active]], nats[places[active]] = np.asarray(logits)[active], np.asarray(chosen)[active]
    assert (got.view(np.uint32) == want.view(np.uint32)).all()
    said = jax.jit(sampling.log_probabilities, static_argnums=3)(want, tokens, np.ones(want.shape[1], np.bool_), 1)[0]
    np.testing.assert_array_equal(nats, said)


def test_a_prompt_taken_in_by_pieces_and_continued_has_them_too():
    """Pieces of one and a half chunks: the state at the end of the first, then keys and values of half a chunk."""
    model, want = trained("float32")
    view, (tokens, *_) = views.deterministic(model), row()
    prefill = jax.jit(steps.prefill.__wrapped__)
    cache = new_cache(view, [1500])
    cache, hidden = dataclasses.replace(cache, lengths=jnp.zeros(1, jnp.int32)), None
    tokens = np.roll(tokens, -1500)[:256]  # the document at 1500, from a row's begin
    alone = jax.jit(lambda model, *row: model(*row))
    padded = np.concatenate([tokens, np.zeros(LENGTH - 256, np.int32)])[None]
    segments = np.where(np.arange(LENGTH) < 256, 0, -1)[None].astype(np.int32)
    want = np.asarray(alone(model, padded, np.arange(LENGTH, dtype=np.int32)[None], segments))[0, :256]
    for start in (0, 192):
        piece = np.zeros((1, 192), np.int32)
        count = min(192, 230 - start)
        piece[0, :count] = tokens[start : start + count]
        hidden, cache = prefill(view, cache, piece, jnp.array([count]))
    logits = [np.asarray(jax.jit(lambda view, hidden: view.logits(hidden[:, None]))(view, hidden))[0, 0]]
    for position in range(230, 256):
        said, _, cache = step(view, cache, tokens[position : position + 1], jnp.array([position]), jnp.array([True]))
        logits.append(np.asarray(said)[0])
    np.testing.assert_array_equal(np.stack(logits), want[229:])


def test_a_chunk_is_whole_chunks_of_the_operation():
    assert deterministic.CHUNK % xla.CHUNK == 0


def test_a_model_that_drops_tokens_and_a_cut_sequence_are_refused():
    with pytest.raises(ValueError, match="deterministic: got routing='capacity'; allowed: 'dropless'"):
        views.deterministic(small.model(VARIANT.replace(routing="capacity")))
    cut = make_mesh(MeshConfig(sequence=2), jax.devices()[:2])
    model = jax.device_put(small.model(), jax.NamedSharding(cut, jax.P()))
    with pytest.raises(ValueError, match="deterministic: got a mesh with {'sequence': 2}"):
        views.deterministic(model)
