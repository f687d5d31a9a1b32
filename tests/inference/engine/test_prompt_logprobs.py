"""Laws of a prompt's log-probabilities: the model's own, the same bits however the prompt is taken in."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax.inference import views
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_request import Request, Result
from tests import small
from tests.inference.engine import engines
from tests.model import jax_model

PROMPT = np.random.default_rng(1).integers(engines.VOCAB, size=43)


@functools.cache
def engine() -> Engine:
    return engines.engine(logprobs=3, prefix_bytes=10**7, keep_logits=False)


def answer(of: Engine | None = None, **options) -> Result:
    of = of or engine()
    id = of.submit(Request(**{"prompt": PROMPT, "max_tokens": 3, "prompt_logprobs": 2, **options}))
    of.run()
    return of.forget(id)


def exact() -> tuple[np.ndarray, float]:
    """(log-probabilities (S, V) of the whole prompt's forward in float64, the largest error of it in float32)."""
    row = PROMPT[None].astype(np.int32), np.arange(len(PROMPT), dtype=np.int32)[None], np.zeros((1, 43), np.int32)
    forward = small.unoptimised(lambda model, *row: jax.nn.log_softmax(model(*row)[0]))
    with small.one_device():
        single = np.asarray(forward(engines.model(), *row))
    with jax_model.float64_operations(), small.one_device():
        weights = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), engines.model())
        wide = views._told(weights, compute=dataclasses.replace(weights.compute, dtype="float64"))
        nats = np.asarray(forward(wide, *row))
    assert nats.dtype == np.float64
    return nats, np.abs(single - nats).max()


def test_they_are_those_of_the_whole_forward_and_the_likeliest_are_those_that_may_be_chosen():
    """Within twice the error of the forward in float32, whose sums are cut elsewhere."""
    nats, error = exact()
    found = answer()
    assert len(found.prompt_logprobs) == len(found.prompt_top) == 42
    np.testing.assert_allclose(found.prompt_logprobs, nats[np.arange(42), PROMPT[1:]], rtol=0, atol=2 * error)
    for row, pairs in zip(nats, found.prompt_top, strict=False):
        ids, values = zip(*pairs, strict=True)
        assert list(ids) == np.argsort(-row[: engines.VOCAB], kind="stable")[:2].tolist()
        np.testing.assert_allclose(values, row[list(ids)], rtol=0, atol=2 * error)


@pytest.mark.parametrize("budget", (8, 16, 32))
def test_however_a_prompt_is_cut_and_whatever_was_known_of_it_they_have_the_same_bits(budget):
    want = answer()
    answer(prompt_logprobs=None)
    other = engine().submit(Request(prompt=PROMPT[:30], max_tokens=9))
    engine().budget = budget
    found = answer()
    engine().budget = 32
    assert (found.cached, found.miss) == (0, "wants the prompt's log-probabilities")
    assert (found.prompt_logprobs, found.prompt_top) == (want.prompt_logprobs, want.prompt_top)
    assert engine().forget(other).prompt_logprobs == []


def test_samples_of_a_prompt_all_have_them_and_one_token_has_none():
    ids = engine().submit_samples(Request(prompt=PROMPT, max_tokens=2, prompt_logprobs=0), 3)
    engine().run()
    found = [engine().forget(id) for id in ids]
    assert all(result.prompt_logprobs == answer().prompt_logprobs for result in found)
    assert answer(prompt=PROMPT[:1]).prompt_logprobs == []


@pytest.mark.slow
def test_on_a_mesh_each_request_has_its_own():
    found = engines.engine(mesh={"data": 2, "sequence": 2}, logprobs=3, keep_logits=False)
    prompts = [PROMPT, PROMPT[5:30], PROMPT[::-1]]
    ids = [found.submit(Request(prompt=one, max_tokens=2, prompt_logprobs=1)) for one in prompts]
    found.run()
    beside = [found.forget(id) for id in ids]
    for one, result in zip(prompts, beside, strict=True):
        alone = answer(found, prompt=one, prompt_logprobs=1)
        assert (result.prompt_logprobs, result.prompt_top) == (alone.prompt_logprobs, alone.prompt_top)
        here = answer(prompt=one, prompt_logprobs=1)
        np.testing.assert_allclose(result.prompt_logprobs, here.prompt_logprobs, rtol=0, atol=4 * exact()[1])


def test_more_of_the_likeliest_than_the_engine_gives_are_refused():
    with pytest.raises(ValueError, match="prompt_logprobs: got 4; allowed: a whole number at least 0 and at most 3"):
        answer(prompt_logprobs=4)
