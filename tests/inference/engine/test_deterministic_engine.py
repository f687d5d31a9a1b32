"""Engine(deterministic=True): what it answers has, packed into a row of training, the bits of training's forward."""

import functools

import jax
import numpy as np
import pytest

from mm01_jax.inference import sampling
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_request import Request, Result
from mm01_jax.inference.sampling import Sampling
from tests import small
from tests.inference.engine import engines

VARIANT = small.variant(num_periods=2, period=("lightning", "softmax"), num_heads=4, num_kv_heads=2, num_experts=8)
LENGTH, ROW, GRID = 2000, 2048, 128  # tokens of a row and its length, which is a multiple of the grid as a slot's is
# Documents begin anywhere: at chunks' edges and inside, two in one chunk, one of two tokens; (place, prompt's tokens).
DOCUMENTS = (
    (0, 9),
    (37, 140),
    (256, 1),
    (300, 1),
    (302, 60),
    (512, 128),
    (727, 127),
    (900, 20),
    (1100, 1),
    (1279, 129),
)
ENDS = (*(place for place, _ in DOCUMENTS[1:]), LENGTH)
WANTS = {"logprobs": 0, "prompt_logprobs": 0}
OPTIONS = {"num_slots": 3, "max_length": ROW, "grid": GRID, "pieces": 2, "steps": 8, "keep_logits": True}


@functools.cache
def model():
    with small.one_device():
        weights = small.model(VARIANT, seed=1)
        return jax.tree.map(lambda x: x * 4 if x.ndim > 3 else x, weights)


@functools.cache
def row() -> tuple[tuple[np.ndarray, ...], list[Result]]:
    """((tokens, positions, segments) of a row of training, the answers in it): requests over three slots, two of which
    are taken away for a while."""
    engine = Engine(model(), deterministic=True, **OPTIONS)
    random, ids = np.random.default_rng(0), []
    for (place, count), end in zip(DOCUMENTS, ENDS, strict=True):
        prompt = random.integers(engines.VOCAB, size=count)
        draws = Sampling(temperature=1.0, top_p=0.9)
        request = Request(prompt=prompt, max_tokens=end - place - count, sampling=draws, place=place, **WANTS)
        ids.append((prompt, engine.submit(request)))
    for number in range(40):
        engine.step()
        if number in (11, 23):
            engine.preempt(min(id for _, id in ids if engine.result(id).finish is None))
    engine.run()
    assert engine.statistics()["preempted"] == 2
    results = [engine.forget(id) for _, id in ids]
    tokens = [np.concatenate([prompt, result.tokens]) for (prompt, _), result in zip(ids, results, strict=True)]
    positions, segments = (
        [make(n, len(x)) for n, x in enumerate(tokens)]
        for make in (lambda _, length: np.arange(length), lambda n, length: np.full(length, n))
    )
    return tuple(np.concatenate(x).astype(np.int32) for x in (tokens, positions, segments)), results


def test_every_answer_has_the_bits_of_the_training_forward_of_its_packed_row():
    packed, results = row()
    assert len(packed[0]) == LENGTH
    padded = [np.pad(x, (0, ROW - LENGTH), constant_values=x is packed[2] and -1)[None] for x in packed]
    following = np.roll(padded[0][0], -1)
    with small.one_device():
        logits = np.asarray(jax.jit(lambda model, *row: model(*row))(model(), *padded))[0]
        allowed = np.ones(logits.shape[1], np.bool_)
        nats = jax.jit(sampling.log_probabilities, static_argnums=3)(logits, following, allowed, 1)[0]
    compared = 0
    for (place, count), end, result in zip(DOCUMENTS, ENDS, results, strict=True):
        span = slice(place + count - 1, end - 1)  # what the answer's tokens are drawn from
        np.testing.assert_array_equal(np.stack(result.logits).view(np.uint32), logits[span].view(np.uint32))
        said = np.float32([*result.prompt_logprobs, *result.logprobs])
        np.testing.assert_array_equal(said, np.asarray(nats)[place : end - 1])
        compared += len(result.tokens)
    assert compared == LENGTH - sum(count for _, count in DOCUMENTS)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"grid": 64}, "grid: got 64; allowed: a multiple of 128 with deterministic=True, up to 256; nearest: 128"),
        ({"drafts": 2}, "drafts: got 2; allowed: 0 with deterministic=True"),
    ],
)
def test_sizes_that_training_does_not_have_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Engine(model(), deterministic=True, **OPTIONS | options)


def test_a_place_is_of_deterministic_engines_alone():
    with pytest.raises(ValueError, match="place: got 3; allowed: a whole number at least 0 and at most 0"):
        engines.alone().submit(Request(prompt=[1], max_tokens=2, place=3))
