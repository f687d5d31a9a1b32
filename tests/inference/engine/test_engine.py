"""Laws of the engine: a request's bits are those it has alone; slots, refusals, priorities, samples."""

import functools

import jax
import numpy as np
import pytest

from mm01_jax.inference.drill.schedules import Compiled, Count, run_schedule
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_request import Request, Result
from mm01_jax.inference.sampling import Sampling
from tests.inference.engine import engines
from tests.slow import slow_but

RANDOM = np.random.default_rng(3)
GREEDY = Sampling(temperature=0.0)
MESHES = (
    {"data": 2},
    {"tensor": 2},
    {"expert": 2},
    {"sequence": 2},
    {"data": 2, "tensor": 2},
    {"data": 2, "expert": 2, "tensor": 2},
    {"data": 2, "expert": 2, "sequence": 2},
    {"expert": 2, "tensor": 2, "sequence": 2},
    {"expert": 4, "tensor": 2},
    {"data": 8},
)


@functools.cache
def engine() -> Engine:
    return engines.engine(poison=True)


def request(length: int, **options) -> Request:
    options = {"max_tokens": 6, "sampling": GREEDY, **options}
    return Request(prompt=RANDOM.integers(engines.VOCAB, size=length), **options)


def answer(engine: Engine, request: Request) -> Result:
    id = engine.submit(request)
    engine.run()
    return engine.forget(id)


def bits(result: Result) -> list[bytes]:
    return [logits.tobytes() for logits in result.logits]


def drilled(engine: Engine, cases, schedules: int, seed: int = 0) -> Count:
    count, random = Count(), np.random.default_rng(seed)
    for _ in range(schedules):
        run_schedule(engine, cases, 32, random, count)
    return count


def test_random_schedules_have_the_bits_of_each_request_alone():
    count = drilled(engine(), engines.cases(), 8)
    assert (count.equal, count.different) == (256, 0)
    assert count.cancelled > 0 and engine().statistics()["preempted"] > 0


def test_a_drill_sees_a_slot_that_keeps_what_its_former_tenant_left(monkeypatch):
    broken = engines.engine()
    fill, empty = broken.devices.fill, broken.devices._empty

    def forget_to_clear(slot, *asked):
        broken.devices._empty = broken.devices.get_row(slot)
        fill(slot, *asked)
        broken.devices._empty = empty

    monkeypatch.setattr(broken.devices, "fill", forget_to_clear)
    assert drilled(broken, engines.cases(), 1).different > 0


@pytest.mark.parametrize("mesh", slow_but(({"expert": 2, "tensor": 2, "sequence": 2},), MESHES), ids=str)
def test_on_a_mesh_random_schedules_have_the_bits_of_each_request_alone(mesh):
    found, alone = (engines.engine(mesh=mesh, num_slots=8, poison=poison) for poison in (True, False))
    cases = engines.Cases(alone, engines.VOCAB, longest=48, count=40, seed=1)
    count = drilled(found, cases, 2)
    assert (count.equal, count.different) == (64, 0)


def test_every_slot_gives_the_same_bits_beside_any_neighbours():
    asked = request(19)
    alone = answer(engine(), asked)
    for slot in range(8):
        others = [engine().submit(request(3 + slot + n, max_tokens=9)) for n in range(slot)]
        id = engine().submit(asked)
        engine().step()
        assert engine()._jobs[id].slot is not None
        engine().run()
        assert bits(engine().forget(id)) == bits(alone)
        assert all(engine().forget(other).finish == "length" for other in others)


@pytest.mark.parametrize("pieces", (1, 2, 4))
def test_prefill_of_any_number_of_pieces_gives_the_same_bits(pieces):
    asked = request(45)
    engine().budget = 32
    one_shot = answer(engine(), asked)
    engine().budget = 8 * pieces
    assert bits(answer(engine(), asked)) == bits(one_shot)


def test_a_budget_takes_in_several_prompts_between_two_calls_of_decode():
    for budget, tokens in ((8, 8), (64, 64), (70, 64), (96, 80)):
        found = engines.engine(budget=budget)
        ids = [found.submit(request(16)) for _ in range(5)]
        found.step()
        assert found.statistics()["prefilled_tokens"] == tokens
        found.run()
        assert all(found.forget(id).finish == "length" for id in ids)


def test_a_stop_id_is_the_last_token_and_log_probabilities_are_the_models():
    found = engines.engine(logprobs=3)
    free = answer(found, Request(prompt=[1, 2, 3], max_tokens=6, sampling=GREEDY, logprobs=2))
    assert free.finish == "length" and len(free.tokens) == len(free.logprobs) == 6
    for token, logprob, top, logits in zip(free.tokens, free.logprobs, free.top, free.logits, strict=True):
        assert top[0] == (token, logprob) and len(top) == 2
        exact = logits.astype(np.float64)
        exact = exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())
        # The sum over the vocabulary, its logarithm and the difference round once each, to a float32 of this size.
        assert abs(exact[token] - logprob) <= 3 * np.spacing(np.float32(abs(exact[token])))
    stop = free.tokens[3]
    stopped = answer(found, Request(prompt=[1, 2, 3], max_tokens=6, sampling=GREEDY, stop_ids=(stop,)))
    assert stopped.finish == "stop" and stopped.tokens == free.tokens[: free.tokens.index(stop) + 1]


def test_a_higher_priority_takes_a_slot_and_the_other_goes_on_from_where_it_was():
    low = [request(9, max_tokens=20) for _ in range(8)]
    expected = [bits(answer(engine(), one)) for one in low]
    ids = [engine().submit(one) for one in low]
    for _ in range(4):
        engine().step()
    preempted = engine().statistics()["preempted"]
    high = engine().submit(request(5, max_tokens=2, priority=1))
    while engine().result(high).finish is None:
        engine().step()
        assert all(engine().result(id).finish is None for id in ids)
    assert engine().result(high).finish == "length"
    assert engine().statistics()["preempted"] == preempted + 1
    engine().run()
    assert [bits(engine().forget(id)) for id in ids] == expected


def test_samples_take_the_prompt_in_once_and_have_the_bits_of_requests_of_their_seeds():
    asked = request(20, sampling=Sampling(temperature=1.0), seed=7)
    before = engine().statistics()["prefilled_tokens"]
    ids = engine().submit_samples(asked, 4)
    engine().run()
    assert engine().statistics()["prefilled_tokens"] == before + 20
    found = [(engine()._jobs[id].request, engine().forget(id)) for id in ids]
    assert len({tuple(result.tokens) for _, result in found}) == 4
    assert all(bits(answer(engine(), request)) == bits(result) for request, result in found)
    assert found[0][0].seed == 7


@pytest.mark.parametrize("times", slow_but((60,), (60, 1000)))
def test_cancelling_whenever_leaks_no_slot(times):
    for n in range(times):
        id = engine().submit(request(1 + n % 40, max_tokens=8))
        for _ in range(n % 4):
            engine().step()
        engine().cancel(id)
        assert engine().forget(id).finish == "cancelled" or n % 4 > 1
    engine().run()
    found = engine().statistics()
    assert (found["free_slots"], found["running"], found["waiting"]) == (8, 0, 0)


def test_traffic_compiles_nothing():
    engine().run()
    engines.cases()
    with Compiled() as compiled:
        drilled(engine(), engines.cases(), 1, seed=5)
        assert compiled.count == 0
        jax.jit(lambda x: x * 3 + len("traffic")).lower(np.ones(3, np.float32)).compile()
        assert compiled.count == 1, "the count counts"
    assert engine().statistics()["programs"] <= 12


def test_streaming_gives_each_token_once_while_others_go_on():
    asked, other = request(11, max_tokens=9), engine().submit(request(30, max_tokens=9))
    expected = answer(engine(), asked).tokens
    id = engine().submit(asked)
    assert list(engine().stream(id)) == expected
    assert len(engine().result(other).tokens) > 0
    engine().run()


def test_two_streams_at_once_lose_no_token():
    asked = [request(length, max_tokens=9) for length in (11, 30)]
    expected = [answer(engine(), one).tokens for one in asked]
    streams = [engine().stream(engine().submit(one)) for one in asked]
    assert [list(column) for column in zip(*zip(*streams, strict=True), strict=True)] == expected
    engine().run()


REFUSED = (
    ({"prompt": []}, "prompt: got no token"),
    ({"prompt": "text"}, "prompt: got text"),
    ({"prompt": [1, 320]}, "prompt: got the id 320; allowed: 0 to 319"),
    ({"prompt": [-1]}, "prompt: got the id -1"),
    ({"prompt": [0.5]}, "prompt: got float64"),
    ({"prompt": [[1]]}, r"prompt: got int64\[1, 1\]"),
    ({"prompt": [1] * 60}, "prompt of 60 tokens and max_tokens=6 need 66 positions, .* bytes; a slot has 64"),
    ({"max_tokens": 0}, "max_tokens: got 0"),
    ({"max_tokens": float("nan")}, "max_tokens: got nan"),
    ({"seed": -1}, "seed"),
    ({"stop_ids": (1,) * 9}, "stop_ids: got 9 ids; allowed: at most 8"),
    ({"stop_ids": ("x",)}, "stop_ids: got "),
    ({"stop_ids": {1, 2}}, "stop_ids: got a set; allowed: a list, tuple or array of token ids"),
    ({"expected": {1}}, "expected: got a set"),
    ({"sampling": Sampling(logit_bias={320: 1.0})}, "logit_bias: got the id 320; allowed: 0 to 319"),
    ({"logprobs": 1}, "logprobs: got 1; allowed: a whole number at least 0 and at most 0"),
    ({"sampling": 0.8}, "sampling: got 0.8; allowed: a Sampling"),
    ({"priority": 0.5}, "priority: got 0.5"),
    ({"content": "x"}, "content: got 'x'; allowed: bytes"),
    ({"remember": None}, "remember: got None; allowed: True or False"),
)


@pytest.mark.parametrize("options, message", REFUSED, ids=str)
def test_what_cannot_be_done_is_refused_before_anything_is_computed(options, message):
    with pytest.raises(ValueError, match=message):
        engine().submit(Request(**{"prompt": [1, 2], "max_tokens": 6, **options}))
    assert engine().idle


def test_what_is_no_request_no_count_and_no_id_is_refused():
    with pytest.raises(ValueError, match="request: got a list; allowed: a Request"):
        engine().submit([1, 2])
    for count, got in ((0, "0"), (True, "True"), (2.0, "2.0"), (10**9, "1000000000")):
        with pytest.raises(ValueError, match=f"count: got {got}; allowed: a whole number at least 1 and at most 1024"):
            engine().submit_samples(request(3), count)
    for id in (10**6, -1, None, [0], "0"):
        with pytest.raises(ValueError, match="the engine knows none of this id"):
            engine().result(id)
    with pytest.raises(ValueError, match="stream_text: no tokenizer reads the answer; allowed: stream"):
        engine().stream_text(0)
    assert engine().idle


def test_a_preempted_request_waits_in_the_memory_of_the_host():
    id = engine().submit(request(9, max_tokens=20))
    engine().step()
    engine().preempt(id)
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(engine()._jobs[id].row)} == {"pinned_host"}
    engine().run()
    assert len(engine().forget(id).tokens) == 20


def test_numbers_of_numpy_are_the_numbers_that_they_stand_for():
    engine = engines.engine()
    asked = [Request(prompt=[1, 2], max_tokens=kind(4), seed=kind(7), sampling=Sampling()) for kind in (int, np.int8)]
    ids = [engine.submit(request) for request in asked]
    engine.run()
    assert engine.forget(ids[0]).tokens == engine.forget(ids[1]).tokens
    with pytest.raises(ValueError, match="max_tokens=100 need 160 positions"):
        engine.submit(Request(prompt=[5] * 60, max_tokens=np.int8(100)))
    for name in ("presence_penalty", "temperature", "repetition_penalty"):
        with pytest.raises(ValueError, match=name):
            Sampling(**{name: np.float16("inf")})


def test_a_request_is_what_it_was_when_it_was_asked():
    engine, bias = engines.engine(), {5: 100.0}
    asked = Request(prompt=[1, 2], max_tokens=3, stop_ids=[9], sampling=Sampling(temperature=0.0, logit_bias=bias))
    id = engine.submit(asked)
    bias[5], bias[6] = -100.0, 200.0
    asked.stop_ids[0] = 5
    engine.run()
    assert engine.forget(id).tokens == [5, 5, 5]
