"""Laws of the experts that tokens are routed to: those of the forward, in any schedule, of engines that keep them."""

import functools

import jax
import numpy as np
import pytest

from mm01_jax import sharding
from mm01_jax.inference import views
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_request import Request, Result
from mm01_jax.inference.sampling import Sampling
from tests.inference.engine import engines

RANDOM = np.random.default_rng(7)
DRAWS = Sampling(temperature=1.0)


@functools.cache
def engine(**options) -> Engine:
    return engines.engine(routed_experts=True, **options)


def request(length: int, **options) -> Request:
    told = {"max_tokens": 12, "sampling": DRAWS, "routed_experts": True, **options}
    return Request(prompt=RANDOM.integers(engines.VOCAB, size=length), **told)


def answer(engine: Engine, asked: Request) -> Result:
    id = engine.submit(asked)
    engine.run()
    return engine.forget(id)


def forward(tokens: np.ndarray, segments: np.ndarray | None = None, positions: np.ndarray | None = None) -> np.ndarray:
    """(tokens, layers, top-k) of training's forward."""
    model = views.routed(engines.model())
    row = tokens, np.arange(len(tokens)) if positions is None else positions, np.zeros(len(tokens), int)
    row = [np.asarray(x, np.int32)[None] for x in (*row[:2], row[2] if segments is None else segments)]

    @jax.jit
    def routed(model, tokens, *told):
        return model.forward(model.embed_tokens(tokens), *told)[2].choice

    with jax.set_mesh(sharding.mesh_of(model)):
        return np.asarray(routed(model, *row))[:, 0].transpose(1, 0, 2)


def test_they_are_those_of_the_forward_of_prompt_and_answer_but_for_its_last_token():
    """The model of these tests has no near ties: prefill, decode and the forward choose alike."""
    asked = request(21)
    found = answer(engine(), asked)
    want = forward(np.concatenate([asked.prompt, found.tokens[:-1]]))
    assert found.routed_experts.dtype == np.int32
    assert found.routed_experts.shape == (32, 2, 2)
    assert np.array_equal(found.routed_experts, want)
    assert len(np.unique(want)) == 4


def test_in_any_schedule_they_are_what_they_are_alone():
    asked = [request(length, seed=length, max_tokens=4 + length % 9) for length in (1, 7, 8, 9, 16, 30, 41, 5, 23, 12)]
    alone = [answer(engine(), one) for one in asked]
    busy = engine(drafts=2, prefix_bytes=10**6, poison=True)
    for again in range(2):  # the second time every prompt is remembered
        ids = [busy.submit(one) for one in asked]
        for number in range(6):
            busy.step()
            busy.preempt(ids[number])
        busy.run()
        for id, want in zip(ids, alone, strict=True):
            found = busy.forget(id)
            assert found.tokens == want.tokens
            assert np.array_equal(found.routed_experts, want.routed_experts)
            assert found.cached == 0 and (not again or found.miss == "wants the prompt's routed experts")


def test_samples_have_them_of_their_prompt_too_and_who_does_not_ask_gets_none():
    asked = request(13)
    ids = engine().submit_samples(asked, 3)
    engine().run()
    found = [engine().forget(id) for id in ids]
    assert all(len(one.routed_experts) == 13 + 11 for one in found)
    assert all(np.array_equal(one.routed_experts[:13], found[0].routed_experts[:13]) for one in found)
    assert answer(engine(), request(5, routed_experts=False)).routed_experts is None


def test_deterministic_they_are_those_of_training_s_forward_over_the_packed_row():
    found = engines.engine(
        num_slots=2, max_length=256, grid=128, pieces=2, routed_experts=True, deterministic=True, keep_logits=False
    )
    cuts = [0, 30, 71, 128, 190, 250]
    asked = [request(9, max_tokens=b - a - 9, place=a) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    results = [found.forget(id) for id in _run(found, asked)]
    tokens = [np.concatenate([one.prompt, result.tokens]) for one, result in zip(asked, results, strict=True)]
    segments = np.concatenate([np.full(len(one), n) for n, one in enumerate(tokens)] + [np.full(6, -1)])
    positions = np.concatenate([np.arange(len(one)) for one in tokens] + [np.zeros(6, int)])
    row = np.pad(np.concatenate(tokens), (0, 6))
    want = forward(row, segments, positions)
    for begin, result in zip(cuts, results, strict=False):
        count = len(result.routed_experts)
        assert count == 8 + len(result.tokens)
        assert np.array_equal(result.routed_experts, want[begin : begin + count])


def _run(engine: Engine, asked) -> list[int]:
    ids = [engine.submit(one) for one in asked]
    engine.run()
    return ids


@pytest.mark.parametrize("value, message", ((True, "got True; .* an Engine"), (1, "got 1; allowed: True or False")))
def test_an_engine_that_does_not_keep_them_refuses_who_asks(value, message):
    with pytest.raises(ValueError, match=f"routed_experts: {message}"):
        engines.alone().submit(request(3, routed_experts=value))


def test_an_engine_that_does_not_keep_them_computes_what_the_model_without_them_does():
    """Nothing that is off is in the program: its arguments and results are those of the model as it is."""
    model = engines.model()
    told = jax.ShapeDtypeStruct((1, 8), np.int32)
    with jax.set_mesh(sharding.mesh_of(model)):
        plain, telling = (
            jax.eval_shape(lambda m, t: m.forward(m.embed_tokens(t), t, t)[2], one, told)
            for one in (model, views.routed(model))
        )
    assert plain.choice is None and telling.choice.shape == (2, 1, 8, 2)
    assert engines.alone().devices.model.stacks[0].experts.tells is False
