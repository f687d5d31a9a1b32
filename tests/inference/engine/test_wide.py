"""Laws of an engine that takes blocks of pieces in as one product: a block's bits are its own, and nobody sees others.

So that a test of few numbers sees which product made them, a block's embeddings are made a hundredth larger here.
"""

import numpy as np
import pytest

from mm01_jax.inference import engine_programs
from mm01_jax.inference.drill.cases import Cases
from mm01_jax.inference.drill.schedules import Count, run_schedule
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_request import Request
from mm01_jax.inference.prefix import Prefix
from mm01_jax.inference.sampling import Sampling
from tests.inference.engine import engines
from tests.slow import slow_but

GRID, WIDE = engines.SIZES["grid"], 2
BLOCK = GRID * WIDE
MEMORIES = (
    {"prefix_bytes": 10**9},
    {"prefix_bytes": 40_000, "host_bytes": 40_000, "path_states": 2},
    {"prefix_bytes": 10**9, "snapshots": 3},
    {},
)


@pytest.fixture(scope="module")
def alone():
    """An engine whose blocks and pieces differ."""
    embedded = engine_programs.embedded

    def told_apart(model, tokens, *more):
        return embedded(model, tokens, *more) * (1.01 if tokens.shape[1] > GRID else 1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_programs, "embedded", told_apart)
        yield engines.engine(wide=WIDE, fresh=True)


def like(alone: Engine, **options) -> Engine:
    sizes = engines.SIZES | {"wide": WIDE}
    return Engine(engines.model(), vocab_size=engines.VOCAB, like=alone, poison=True, **sizes, **options)


def answered(engine: Engine, prompt: np.ndarray, **options):
    id = engine.submit(Request(prompt=prompt, max_tokens=3, sampling=Sampling(temperature=0.0), **options))
    engine.run()
    return engine.forget(id)


def tokens(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(engines.VOCAB, size=count).astype(np.int32)


@pytest.mark.parametrize("memory", slow_but(MEMORIES[:1], MEMORIES), ids=str)
def test_whatever_runs_and_is_remembered_each_request_has_the_bits_that_it_has_alone(alone, memory):
    cases = Cases(alone, engines.VOCAB, longest=48, count=60, seed=0)
    engine, count, random = like(alone, budget=BLOCK, **memory), Count(), np.random.default_rng(7)
    for _ in range(4):
        run_schedule(engine, cases, 32, random, count)
    assert (count.equal, count.different) == (128, 0)
    if memory:
        assert engine.statistics()["prefix"]["hits"] > 20


def test_a_prompt_finds_blocks_of_others_and_of_their_rests_what_has_the_same_cuts(alone):
    engine, head = like(alone, prefix_bytes=10**9), tokens(60, 0)
    cached = {}
    for length in (28, 29, 45, 44):
        found, cold = answered(engine, head[:length]), answered(like(alone), head[:length])
        np.testing.assert_array_equal(found.logits, cold.logits)
        cached[length] = found.cached
    # The second one's rest begins as the first one's; to the third that is a whole block, which the fourth finds.
    assert cached == {28: 0, 29: 24, 45: BLOCK, 44: 40}


def test_a_piece_of_a_block_is_another_than_the_same_tokens_by_themselves():
    prefix, ids = Prefix(2, 10**6), np.arange(7, dtype=np.int32)
    for count in (2, 6):
        prefix.put(b"", ids[:count], lambda number: np.full(1, number), lambda: np.ones(1), rest=4)
    found = prefix.find(b"", ids, rest=4)
    assert (len(found.pages), found.miss) == (3, None)
    found = prefix.find(b"", ids, rest=2)
    assert (len(found.pages), found.known, found.miss) == (1, 1, "cut elsewhere")


def test_calls_take_whole_blocks_however_small_the_budget(alone, monkeypatch):
    engine, counts = like(alone, budget=GRID, prefix_bytes=10**9), []
    prefill = engine.devices.prefill
    monkeypatch.setattr(
        engine.devices, "prefill", lambda work: (counts.extend(len(one.tokens) for one in work), prefill(work))[1]
    )
    answered(engine, tokens(45, 1), remember=False)
    assert counts == [BLOCK, BLOCK, GRID, 5]
