"""The JAX model in float32 reproduces what the original code computed (docs/model.md H), and what logits cannot show.

Logits and states are blind to a scale of the lightning query and to the eps of the lightning norm
(`test_porting_mistakes.py`): these two are met where they show.
"""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax.model.lightning import Lightning, slopes
from mm01_jax.model.mixers import empty_cache
from mm01_jax.model.tokens import Tokens
from tests.model import jax_model
from tests.reference import fixture, lightning
from tests.reference.documents import document_numbers, positions_in_documents
from tests.reference.elementary import rms_norm
from tests.reference.model import forward
from tests.reference.test_reference_fixture import BOUND, assert_reproduces_fixture, prefill, relative_error

PROMPT = 280


@functools.cache
def model():
    with jax_model.one_device():
        return jax_model.build(fixture.CONFIG, 8, fixture.weights(), "float32")


@functools.cache
def whole_rows():
    return jax_model.compiled(lambda model, *batch: model(*batch))


@functools.cache
def with_cache():
    def call(model, tokens, *rest):
        hidden, cache, _ = model.forward(model.embed_tokens(tokens), *rest)
        return model.logits(hidden), cache

    return jax_model.compiled(call)


def batch(start: int, stop: int):
    """Tokens, positions and segments of one document's stretch."""
    at = np.arange(start, stop, dtype=np.int32)[None]
    return fixture.load()["ids"][:, start:stop].astype(np.int32), at, np.zeros_like(at)


def test_model_without_a_cache_reproduces_fixture_logits():
    with jax_model.one_device():
        logits = whole_rows()(model(), *batch(0, 300))
    assert logits.dtype == jnp.float32
    assert relative_error(np.asarray(logits)[0], fixture.load()["logits"]) < BOUND


@pytest.mark.parametrize("prompt", [300, PROMPT])
def test_model_prefill_then_decode_reproduces_fixture(prompt):
    with jax_model.one_device():
        cache = empty_cache(model().config, model().compute, jax_model.RULES, 1, 300)
        # One compiled prefill serves both prompts: what lies behind the prompt is padding.
        tokens, at, segments = batch(0, 300)
        first, cache = with_cache()(model(), tokens, at, np.where(at < prompt, segments, -1), cache)
        logits = [np.asarray(first)[0, :prompt]]
        for t in range(prompt, 300):
            out, cache = with_cache()(model(), *batch(t, t + 1), cache)
            logits.append(np.asarray(out)[0])
        states = jax_model.lightning_states(model(), cache)
    assert_reproduces_fixture(np.concatenate(logits), states)


def test_model_packed_documents_equal_the_reference_at_any_boundary():
    # Boundaries inside chunks, at their edges, one token apart; padding inside and behind documents.
    ends = [1, 2, 60, 127, 128, 129, 200, 256, 290]
    segments = np.searchsorted(ends, np.arange(300), side="right").astype(np.int32)[None]
    segments[:, 100:103] = segments[:, 295:] = -1
    ids = fixture.load()["ids"]
    want = forward(fixture.CONFIG, fixture.weights(), ids, segments_BS=segments).logits_BSV
    at, _ = positions_in_documents(document_numbers(segments), np.zeros(1, int))
    with jax_model.one_device():
        got = whole_rows()(model(), ids.astype(np.int32), at.astype(np.int32), segments)
    real = segments >= 0
    assert relative_error(np.asarray(got)[real], want[real]) < BOUND


def first_layer_input():
    weights = {name: weight.astype(np.float64) for name, weight in fixture.weights().items()}
    h = weights["model.embed_tokens.weight"][fixture.load()["ids"]]
    return weights, rms_norm(h, weights["model.layers.0.input_layernorm.weight"], fixture.CONFIG.rms_norm_eps)


def test_model_lightning_heads_before_their_norm_equal_the_reference(monkeypatch):
    monkeypatch.setattr(Lightning, "finish", lambda self, x_BSD, heads_BSNH: heads_BSNH)
    _, x = first_layer_input()
    with jax_model.one_device():
        mixer = jax_model.layer_of(model(), stack=0, period=0, index=0).mixer
        document = jnp.zeros((1, 300), jnp.int32)
        tokens = Tokens(jnp.asarray(slopes(4, 8)[0]), document, document, "contiguous")
        heads, _ = jax_model.compiled(lambda x: mixer(x, tokens, None))(jnp.asarray(x, jnp.float32))
    assert relative_error(np.asarray(heads), prefill().heads[0]) < BOUND


def test_model_lightning_norm_of_small_heads_equals_the_reference():
    weights, x = first_layer_input()
    heads = 1e-3 * prefill().heads[0] / np.abs(prefill().heads[0]).max()
    part = {name: weights[f"model.layers.0.self_attn.{name}.weight"] for name in lightning.PARTS}
    normed = lightning.norm(fixture.CONFIG, heads, part["norm"])
    want = (lightning.output_gate(x, part["output_gate"]) * normed) @ part["out_proj"].T
    with jax_model.one_device():
        mixer = jax_model.layer_of(model(), stack=0, period=0, index=0).mixer
        got = jax_model.compiled(mixer.finish)(jnp.asarray(x, jnp.float32), jnp.asarray(heads, jnp.float32))
    assert relative_error(np.asarray(got), want) < BOUND
