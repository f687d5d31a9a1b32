"""Laws of generation: what is drawn follows from the forward of training, for each prompt alone; a step is in place."""

import functools
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mm01_jax
from mm01_jax.config import Rules
from mm01_jax.data.tokenizer import BytesTokenizer
from mm01_jax.inference import engine_devices, fitting, steps
from mm01_jax.inference.asked import Settings
from mm01_jax.inference.sampling import Sampling
from mm01_jax.inference.text import Speaker, stream
from mm01_jax.model.mixers import empty_cache
from pallas_kernels import dispatch
from tests import small
from tests.inference import answering

VOCAB = 257  # ids of the tokenizer; the table has 320 rows
GREEDY = Sampling(temperature=0.0)
RANDOM = np.random.default_rng(0)
PROMPTS = [RANDOM.integers(VOCAB, size=n).astype(np.int32) for n in (7, 1, 13, 8)]


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with small.one_device(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_devices, "jit", small.unoptimised)
        yield


@functools.cache
def model():
    return small.model(seed=1)


def text(prompts, *, max_tokens=17, sampling=GREEDY, seed=0, vocab_size=VOCAB, weights=None) -> np.ndarray:
    """All new tokens (B, n)."""
    asked = {"max_tokens": max_tokens, "sampling": sampling, "seed": seed, "vocab_size": vocab_size}
    return np.array(answering.drawn(model() if weights is None else weights, prompts, **asked))


@functools.cache
def greedy() -> np.ndarray:
    return text(PROMPTS)


@functools.cache
def forward():
    return small.unoptimised(lambda model, tokens, segments: model(tokens, _positions(tokens), segments))


def _positions(tokens):
    return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)


def whole_logits(row: np.ndarray, weights=None) -> np.ndarray:
    """Logits (tokens, V) of the full forward over one sequence, padded to one compiled length."""
    tokens = np.zeros((1, 48), np.int32)
    tokens[0, : len(row)] = row
    segments = np.where(np.arange(48) < len(row), 0, -1)[None].astype(np.int32)
    return np.asarray(forward()(model() if weights is None else weights, tokens, segments))[0, : len(row)]


def test_greedy_tokens_are_the_argmax_of_the_full_forward_over_the_growing_sequence():
    for prompt, new in zip(PROMPTS, greedy(), strict=True):
        row = prompt
        for token in new:
            logits = whole_logits(row)[-1, :VOCAB]
            # Where two logits are equal to rounding either may win; with these weights none are.
            assert np.diff(np.sort(logits)[-2:]) > 1e-5
            assert token == logits.argmax()
            row = np.append(row, token).astype(np.int32)


def test_a_ragged_batch_gives_each_prompt_its_text_alone():
    for prompt, new in zip(PROMPTS[:1], greedy(), strict=False):
        np.testing.assert_array_equal(text([prompt])[0], new)


def test_more_prompts_than_slots_get_the_same_texts():
    found = answering.drawn(model(), PROMPTS, vocab_size=VOCAB, slots=2, max_tokens=17, sampling=GREEDY)
    np.testing.assert_array_equal(found, greedy())


def test_a_second_engine_of_the_same_shapes_compiles_nothing():
    def compiled() -> int:
        with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
            seen = []
            patch.setattr(logging.getLogger("jax._src.interpreters.pxla"), "handle", seen.append)
            text(PROMPTS[:3], max_tokens=9)
        return sum("Compiling" in record.getMessage() for record in seen)

    assert compiled() > 0
    assert compiled() == 0


@pytest.mark.parametrize(
    ("longest", "platform", "cuts"),
    [
        (3, "cpu", {"grid": 64, "wide": 1, "pieces": 8}),
        (100_000, "cpu", {"grid": 64, "wide": 1, "pieces": 8}),
        (64, "gpu", {"grid": 64, "wide": 1, "pieces": 8}),
        (700, "gpu", {"grid": 256, "wide": 2, "pieces": 8}),
        (100_000, "gpu", {"grid": 256, "wide": 16, "pieces": 16}),
        (100_000, "tpu", {"grid": 256, "wide": 2, "pieces": 8}),
    ],
)
def test_long_prompts_are_taken_in_by_large_products_where_those_are_faster(longest, platform, cuts, monkeypatch):
    monkeypatch.setattr(dispatch, "platform", lambda: platform)
    assert fitting.cuts_of(longest, shards=1) == cuts
    assert fitting.cuts_of(longest, shards=3)["grid"] % 3 == 0


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    warm = Sampling(temperature=1.5)
    first, again, other = (text(PROMPTS, sampling=warm, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first[0] != first[3]).any()


def test_ids_beyond_the_tokenizer_and_rows_never_trained_are_not_chosen():
    favourite = int(greedy()[0, 0])

    def without(path, x):
        return x.at[favourite].set(0.0) if "embed" in jax.tree_util.keystr(path) else x

    zeroed = jax.tree_util.tree_map_with_path(without, model())
    for sampling in (GREEDY, Sampling(temperature=50.0)):
        found = text(PROMPTS, sampling=sampling, weights=zeroed, vocab_size=200)
        assert found.max() < 200
        assert not (found == favourite).any()


def test_a_bfloat16_model_decodes_what_its_own_prefill_says():
    weights = small.model(small.variant(dtype="bfloat16", param_dtype="bfloat16"), seed=1)
    found = text(PROMPTS, weights=weights, max_tokens=6)
    # The whole forward differs from decode by bfloat16's rounding.
    for prompt, new in zip(PROMPTS, found, strict=True):
        logits = whole_logits(np.append(prompt, new[:-1]), weights)[len(prompt) - 1 :, :VOCAB]
        chosen = np.take_along_axis(logits, new[:, None], axis=-1)[:, 0]
        assert (logits.max(-1) - chosen < 8 * 2.0**-8 * np.abs(logits).max()).all()


@pytest.mark.parametrize(
    ("prompts", "max_tokens", "named"),
    [
        ([], 4, "prompts: got none; allowed: at least one"),
        (["a", ""], 4, r"prompts\[1\]: got no token; allowed: at least one"),
        (["a"], 0, "max_tokens: got 0; allowed: a whole number at least 1"),
        (None, 4, "prompts: got a NoneType; allowed: a list of texts"),
        (["a", b"b"], 4, r"prompts\[1\]: got b'b'; allowed: a text"),
        (["a", "b\ud800"], 4, r"prompts\[1\]: character 1 is half a pair of surrogates; allowed: UTF-8"),
    ],
)
def test_bad_prompts_are_refused_by_name(prompts, max_tokens, named):
    with pytest.raises(ValueError, match=named):
        mm01_jax.generate(model(), BytesTokenizer(), prompts, max_tokens=max_tokens)


ALLOWED = "allowed: max_tokens, sampling, seed, images; nearest: "


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"temperature": 0}, TypeError, f"generate: got temperature=0; {ALLOWED}sampling=Sampling(temperature=0)"),
        ({"temprature": 0}, TypeError, f"generate: got temprature=0; {ALLOWED}sampling=Sampling(temperature=0)"),
        ({"max_new_tokens": 9}, TypeError, f"generate: got max_new_tokens=9; {ALLOWED}max_tokens=9"),
        ({"image": "a.png"}, TypeError, f"generate: got image='a.png'; {ALLOWED}images=[['a.png']]"),
        ({"zzzz": 1}, TypeError, f"generate: got zzzz=1; {ALLOWED[: ALLOWED.index(';')]}"),
        ({"sampling": 0}, ValueError, "sampling: got a int; allowed: Sampling or None"),
        ({"seed": -1}, ValueError, "seed=-1 must be a whole number"),
        ({"images": [["a.png"]]}, ValueError, "images: got [['a.png']]; allowed: None of a model of text"),
    ],
)
def test_other_arguments_are_refused_by_name_before_anything_is_computed(given, error, message, monkeypatch):
    monkeypatch.setattr(fitting, "Engine", lambda *_, **__: pytest.fail("something was computed"))
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        mm01_jax.generate(model(), BytesTokenizer(), ["a"], **given)


@pytest.mark.parametrize(
    ("weights", "tokenizer", "message"),
    [
        (BytesTokenizer(), None, "model: got a BytesTokenizer; allowed: TextModel or VLModel"),
        (
            None,
            None,
            "tokenizer: got a NoneType, which has no decode; allowed: a Tokenizer; nearest: model, ",
        ),
        (None, "bytes", "tokenizer: got a str, which has no decode; allowed: a Tokenizer; nearest: model, "),
    ],
)
def test_what_is_no_model_or_no_tokenizer_is_refused_by_name(weights, tokenizer, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        mm01_jax.generate(weights or model(), tokenizer, ["a"])


def test_a_mark_of_a_picture_is_text_to_a_model_of_text():
    assert len(mm01_jax.generate(model(), BytesTokenizer(), ["<image>"], max_tokens=2)) == 1


def test_the_seed_after_the_largest_is_the_first():
    asked = {"max_tokens": 4, "sampling": Sampling(temperature=1.0)}
    _, last = mm01_jax.generate(model(), BytesTokenizer(), ["a", "b"], seed=2**64 - 1, **asked)
    first, _ = mm01_jax.generate(model(), BytesTokenizer(), ["b", "a"], seed=0, **asked)
    assert last == first


@pytest.fixture(scope="module")
def compiled_step():
    """steps.decode_step compiled for a cache large beside the weights, and the bytes of the cache by kind."""
    variant = small.variant(num_periods=3, period=("lightning", "lightning", "softmax"))
    weights = small.model(variant)
    cache = jax.jit(lambda: empty_cache(*variant, Rules(), 2, 16384))()
    step = jax.jit(steps.decode_step, donate_argnums=1)
    token, active = jnp.zeros(2, jnp.int32), jnp.ones(2, jnp.bool_)
    analysis = step.lower(weights, cache, token, active).compile().memory_analysis()
    return analysis, sum(x.nbytes for x in jax.tree.leaves(cache)), cache.stacks[1][0].nbytes // 3


def test_decode_writes_the_donated_cache_in_place(compiled_step):
    analysis, cache_bytes, _ = compiled_step
    assert analysis.alias_size_in_bytes >= cache_bytes


def test_decode_has_no_temporary_of_the_cache_s_size(compiled_step):
    """At most the keys and values of the one layer in hand, and the logits over them."""
    analysis, cache_bytes, layer_keys = compiled_step
    assert cache_bytes > 6 * layer_keys
    assert analysis.temp_size_in_bytes < 2.5 * layer_keys


def test_a_conversation_takes_in_what_is_new_and_answers_as_from_cold():
    """Also after an answer that was cut off, which leaves no engine, and in one that outgrew its first engine."""
    settings, tokenizer = Settings(8, Sampling(temperature=1.0), 3), BytesTokenizer()
    speaker = Speaker(model(), tokenizer, settings, remembers=True)
    first = tokenizer.encode("What is it? " * 12)
    said = "".join(speaker.say(first))
    assert said == "".join(stream(model(), tokenizer, first, settings))
    turns = np.concatenate([first, tokenizer.encode(said + " And then? ")])
    again = "".join(speaker.say(turns))
    assert speaker._engine.statistics()["prefix"]["reused_tokens"] == len(first) // 64 * 64
    assert again == "".join(stream(model(), tokenizer, turns, settings))
    cut = speaker.say(turns)
    next(cut)
    cut.close()
    assert speaker._engine is None and "".join(speaker.say(turns)) == again
    longer = np.concatenate([turns] * 3)
    assert "".join(speaker.say(longer)) == "".join(stream(model(), tokenizer, longer, settings))
