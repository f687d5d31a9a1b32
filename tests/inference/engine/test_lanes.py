"""Laws of prompts taken in by single pieces, of one or of several requests: as on a GPU, and no bit follows from it."""

import numpy as np
import pytest

from mm01_jax.inference import engine_prefill
from mm01_jax.inference.drill.schedules import Count, run_schedule
from mm01_jax.inference.engine_request import Request
from tests.inference.engine import engines


@pytest.fixture(scope="module", params=(1, 3), ids=("one lane", "three lanes"))
def alone(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_prefill, "WAITING", ("cpu",))
        yield engines.engine(fresh=True, lanes=request.param, logprobs=2)


def like(alone, **options):
    sizes = {name: getattr(alone.sizes, name) for name in ("lanes", "logprobs")}
    told = {**engines.SIZES, "vocab_size": engines.VOCAB, **sizes, **options}
    return engines.Engine(engines.model(), like=alone, **told)


def test_whoever_is_taken_in_beside_it_and_whatever_is_remembered_a_request_has_the_bits_that_it_has_alone(alone):
    found, count = like(alone, prefix_bytes=1 << 22, poison=True), Count()
    cases, random = engines.Cases(alone, engines.VOCAB, longest=48, count=40, seed=6), np.random.default_rng(7)
    for _ in range(4):
        run_schedule(found, cases, 32, random, count)
    assert (count.equal, count.different) == (128, 0)
    statistics = found.statistics()
    assert statistics["prefix"]["hits"] > 0 and statistics["programs"] <= 12


def test_what_the_model_says_of_prompts_is_said_of_each(alone):
    random, found = np.random.default_rng(8), like(alone)
    asked = [random.integers(engines.VOCAB, size=count).astype(np.int32) for count in (3, 8, 21, 30)]
    asked = [Request(prompt=ids, max_tokens=2, prompt_logprobs=n % 3, seed=n) for n, ids in enumerate(asked)]
    ids = [found.submit(one) for one in asked]
    found.run()
    for one, id in zip(asked, ids, strict=True):
        expected = alone.submit(one)
        alone.run()
        said, wanted = found.forget(id), alone.forget(expected)
        assert said.prompt_logprobs == wanted.prompt_logprobs and len(said.prompt_logprobs) == len(one.prompt) - 1
        assert said.prompt_top == wanted.prompt_top and said.tokens == wanted.tokens


def test_several_short_prompts_are_taken_in_by_one_call(alone, monkeypatch):
    found, calls = like(alone), []
    prefill = found.devices.prefill
    monkeypatch.setattr(found.devices, "prefill", lambda work: (calls.append(len(work)), prefill(work))[1])
    for n in range(5):
        found.submit(Request(prompt=[1, 2, n], max_tokens=1))
    found.run()
    assert calls == ([1] * 5 if alone.sizes.lanes == 1 else [3, 2])


REFUSED = (
    ({"lanes": 9}, "lanes: got 9; allowed: 1 with wide > 1, tiles or .*, otherwise up to num_slots=8; nearest: 8"),
    ({"lanes": 2, "grid": 128, "max_length": 128, "deterministic": True}, "lanes: got 2; .*; nearest: 1"),
    ({"lanes": 2, "wide": 2}, "lanes: got 2; allowed: 1 with wide > 1"),
    ({"lanes": 0}, "lanes: got 0"),
)


@pytest.mark.parametrize("options, message", REFUSED, ids=str)
def test_lanes_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        engines.engine(fresh=True, **options)


def test_lanes_of_several_devices_are_refused():
    with pytest.raises(ValueError, match="lanes: got 2; allowed: 1 on 2 devices; nearest: 1"):
        engines.engine(fresh=True, mesh={"tensor": 2}, lanes=2)
