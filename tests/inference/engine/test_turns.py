"""Laws of whose prompt is taken in: a long one takes a piece a step beside others, and holds up no shorter one."""

import numpy as np
import pytest

from mm01_jax.inference.engine_request import Request
from mm01_jax.inference.sampling import Sampling
from tests.inference.engine import engines

GRID = engines.SIZES["grid"]


@pytest.fixture
def engine(monkeypatch):
    """With calls of prefill noted: of each step, how many tokens of which slot."""
    found = engines.engine(budget=2 * GRID, prefix_bytes=10**9)
    prefill, step, found.noted = found.devices.prefill, found.step, []

    def noting(work):
        found.noted[-1] += [(one.slot, len(one.tokens)) for one in work]
        return prefill(work)

    def stepping():
        found.noted.append([])
        return step()

    monkeypatch.setattr(found.devices, "prefill", noting)
    monkeypatch.setattr(found, "step", stepping)
    return found


def request(count: int, seed: int, new: int = 1) -> Request:
    tokens = np.random.default_rng(seed).integers(engines.VOCAB, size=count).astype(np.int32)
    return Request(prompt=tokens, max_tokens=new, sampling=Sampling(temperature=0.0))


def until_done(engine, *ids: int) -> dict[int, int]:
    """At which step each was done."""
    done = {}
    while len(done) < len(ids):
        done |= {event.id: len(engine.noted) for event in engine.step() if event.finish is not None}
    return done


def test_a_short_prompt_that_comes_later_is_answered_before_a_long_one(engine):
    long, short = engine.submit(request(7 * GRID, 1)), engine.submit(request(GRID + 3, 2))
    done = until_done(engine, long, short)
    assert done[short] < done[long]
    for step in engine.noted[: done[short] - 1]:
        assert sum(count for slot, count in step if slot == 0) <= GRID  # of the long one


def test_a_long_prompt_takes_a_piece_a_step_beside_answers(engine):
    answering = engine.submit(request(3, 1, new=40))
    engine.step()
    first, long = len(engine.noted), engine.submit(request(7 * GRID, 2))
    until_done(engine, answering, long)
    # As long as it has more left than the budget.
    assert [sum(count for _, count in step) for step in engine.noted[first:][:6]] == [GRID] * 4 + [2 * GRID, GRID]


def test_what_is_to_be_remembered_waits_until_no_prompt_does(engine):
    ended = engine.submit(request(3 * GRID, 1, new=GRID))
    long = engine.submit(request(7 * GRID, 2))
    until_done(engine, ended, long)
    taken = [slot for step in engine.noted for slot, _ in step]
    engine.run()
    assert engine.statistics()["prefix"]["states"] > 0 and taken.count(1) >= 7  # all of the long one came first
