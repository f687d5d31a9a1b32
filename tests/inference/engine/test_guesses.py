"""Laws of guessing: each request has the bits that it has without; what is not right is taken back."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax import sharding
from mm01_jax.inference import engine_decode, views
from mm01_jax.inference.drill.cases import Cases
from mm01_jax.inference.drill.models import random_model
from mm01_jax.inference.drill.schedules import Count, run_schedule
from mm01_jax.inference.engine_request import Request
from mm01_jax.inference.sampling import Sampling
from mm01_jax.model import decode_step
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.mixers import empty_cache
from tests.inference.engine import engines

GREEDY = Sampling(temperature=0.0)
_ENGINES = {}
NOTHING = types.SimpleNamespace(choice=None)


def guessing(**options):
    """One engine for each of these options."""
    key = tuple(sorted(options.items()))
    if key not in _ENGINES:
        _ENGINES[key] = engines.engine(**{"drafts": 3, "steps": 2, **options})
    return _ENGINES[key]


def answer(engine, prompt, **options):
    id = engine.submit(Request(prompt=prompt, **{"max_tokens": 20, "sampling": GREEDY, **options}))
    engine.run()
    return engine.forget(id)


def bits(result) -> list[bytes]:
    return [logits.tobytes() for logits in result.logits]


def guessed(engine) -> int:
    return engine.statistics()["guessed_tokens"]


def test_random_schedules_with_guesses_have_the_bits_of_each_request_alone_without():
    engine, count, random = guessing(poison=True, prefix_bytes=40_000), Count(), np.random.default_rng(11)
    cases = Cases(guessing(), engines.VOCAB, longest=48, count=40, seed=2)
    for _ in range(4):
        run_schedule(engine, cases, 32, random, count)
    assert (count.equal, count.different) == (128, 0)
    assert guessed(engine) > 50


@pytest.mark.parametrize(
    "sampling", (GREEDY, Sampling(temperature=1.0, repetition_penalty=1.2)), ids=("greedy", "drawn")
)
@pytest.mark.parametrize("right", (0, 1, 2, 7, 20))
def test_an_answer_that_is_expected_is_taken_in_several_tokens_at_a_time_as_far_as_it_is_right(right, sampling):
    engine, prompt = guessing(), np.arange(13) * 7
    plain = answer(engine, prompt, sampling=sampling, guesses=False)
    expected = plain.tokens[:right] + [token ^ 1 for token in plain.tokens[right:]]
    before = guessed(engine)
    found = answer(engine, prompt, sampling=sampling, expected=expected)
    assert (found.tokens, bits(found)) == (plain.tokens, bits(plain))
    # Of each four tokens the first is drawn before the guess is looked at.
    assert guessed(engine) - before <= max(0, right - (right + 3) // 4)
    if right == 20:
        assert guessed(engine) - before == 15


def test_greedy_tokens_are_those_of_an_engine_that_never_guesses():
    prompt = np.tile(np.arange(6), 4)
    assert answer(guessing(), prompt).tokens == answer(engines.alone(), prompt).tokens


@pytest.mark.parametrize("kind", ("always", "random", "one"))
def test_adversarial_guesses_change_no_bit(kind, monkeypatch):
    def adversary(tokens_BT, length_B, token_B, count):
        base = token_B[:, None] + jnp.arange(1, 1 + count, dtype=jnp.int32)[None, :]
        if kind == "always":
            return base % 300
        if kind == "random":
            return (base * 7919 + length_B[:, None] * 104729) % 320 - 20
        return jnp.where(jnp.arange(count)[None, :] == 0, base % 300, -1)

    monkeypatch.setattr(engine_decode, "lookup", adversary)
    broken = engines.engine(drafts=3, steps=2, fresh=True)
    for length in (1, 8, 21):
        prompt = np.arange(length) * 3
        plain = answer(guessing(), prompt, guesses=False)
        found = answer(broken, prompt)
        assert (found.tokens, bits(found)) == (plain.tokens, bits(plain))


def test_lookup_gives_what_followed_the_last_two_tokens_where_they_stood_last():
    rows = [[5, 6, 1, 5, 6, 2, 3, 5, -1, -1], [5, 6, 1, 5, 6, 2, 3, 5, 9, 8], [1, 1, 1, 1, -1, -1, -1, -1, -1, -1]]
    tokens, lengths = jnp.array(rows, jnp.int32), jnp.array([8, 8, 4], jnp.int32)
    found = engine_decode.lookup(tokens, lengths, jnp.array([6, 9, 1], jnp.int32), 4)
    # The second is as expected: what is expected behind it, as far as that goes.
    assert found.tolist() == [[2, 3, 5, -1], [8, -1, -1, -1], [-1, -1, -1, -1]]
    found = engine_decode.lookup(tokens, lengths, jnp.array([7, 6, 4], jnp.int32), 2)
    assert found.tolist() == [[-1, -1], [2, 3], [-1, -1]]


def test_a_stop_id_among_right_guesses_ends_the_answer_there():
    engine, prompt = guessing(), np.arange(11)
    plain = answer(engine, prompt, guesses=False)
    stop = plain.tokens[6]
    cut = plain.tokens.index(stop) + 1
    found = answer(engine, prompt, expected=plain.tokens, stop_ids=(stop,))
    assert (found.tokens, found.finish) == (plain.tokens[:cut], "stop")
    again = answer(engine, prompt, max_tokens=6, expected=plain.tokens)
    assert (again.tokens, again.finish) == (plain.tokens[:6], "length")


def test_tokens_behind_right_guesses_have_the_bits_of_single_tokens():
    """At a width and a count at which XLA:CPU gives tokens of a stream (B, 3, D) other bits by their place in S."""
    model = views.answering(random_model(256, None))
    rows, width, random = 8, 3, np.random.default_rng(0)

    @jax.jit
    def step(model, cache, tokens_BS, count_B):
        valid_BS = jnp.arange(width)[None, :] < count_B[:, None]
        hidden, new, _ = engine_decode._take_in(model, cache, tokens_BS, valid_BS)
        return hidden, engine_decode._taken_back(model, cache, new, count_B)

    with jax.set_mesh(sharding.mesh_of(model)):
        cache = empty_cache(model.config, model.compute, model.rules, rows, 16)
        for _ in range(2):
            _, cache = step(model, cache, random.integers(257, size=(rows, width)), np.full(rows, width))
        tokens, single = random.integers(257, size=(rows, width)), cache
        together, cache = step(model, cache, tokens, np.full(rows, width))
        for place in range(width):
            alone, single = step(model, single, np.roll(tokens, -place, axis=1), np.ones(rows, int))
            assert np.array_equal(alone[:, 0], together[:, place])
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), cache, single))


def test_guesses_go_the_way_of_streams_that_have_more_rows_than_the_cache(monkeypatch):
    """Kernels of one token a row (`decode_step.py`) are asked where each row has one, and only there."""
    monkeypatch.setattr(decode_step, "serves", lambda model, rows: True)
    asked = []
    monkeypatch.setattr(TextModel, "_step", lambda self, x, *_: asked.append(x.shape) or (x, _[-1], NOTHING))
    model = views.answering(random_model(32, None))
    with jax.set_mesh(sharding.mesh_of(model)):
        cache = empty_cache(model.config, model.compute, model.rules, 4, 16)
        for width in (1, 3):
            tokens = jnp.zeros((4, width), jnp.int32)
            jax.eval_shape(lambda tokens: engine_decode._take_in(model, cache, tokens, tokens == 0)[0], tokens)
    assert asked == [(4, 1, 32)]
