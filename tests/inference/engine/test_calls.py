"""Laws of calls of decode: which program takes one, and when the host reads it, change no bit."""

import contextlib
import threading
import types

import numpy as np
import pytest

from mm01_jax.inference import engine_compile, engine_devices
from mm01_jax.inference.drill.schedules import Count, run_schedule
from mm01_jax.inference.engine_request import Request
from mm01_jax.inference.sampling import Sampling
from mm01_jax.model import decode_step
from tests import small
from tests.inference.engine import engines
from tests.slow import slow_but


def test_a_program_of_its_own_for_likeliest_tokens_gives_the_same_bits(monkeypatch):
    """What GPUs have: whether it is taken follows from who else decodes."""
    monkeypatch.setattr(engine_devices, "WAITING", ("cpu",))
    found, taken = engines.engine(fresh=True, poison=True), []
    whole = found.devices._decode_whole
    for how, program in whole.items():
        whole[how] = lambda *told, how=how, program=program: taken.append(how) or program(*told)
    count, random = Count(), np.random.default_rng(2)
    for _ in range(4):
        run_schedule(found, engines.cases(), 32, random, count)
    assert (count.equal, count.different) == (128, 0) and {*taken} == {"drawn", "plain"}


def test_the_next_call_of_decode_begins_before_the_last_one_is_read(monkeypatch):
    found, order = engines.engine(), []
    for name in ("decode", "read"):
        whole = getattr(found.devices, name)
        monkeypatch.setattr(found.devices, name, lambda *a, n=name, w=whole, **k: order.append(n) or w(*a, **k))
    id = found.submit(Request(prompt=[1, 2, 3], max_tokens=12, sampling=Sampling(temperature=0.0)))
    found.run()
    assert len(found.forget(id).tokens) == 12
    calls = ["decode", *["decode", "read"] * 3, "read"]
    assert order == calls, "the first token, eleven more in three calls, and none for nothing"


def test_who_interrupts_the_wait_for_a_call_finds_its_tokens_the_next_time(monkeypatch):
    found = engines.engine()
    request = Request(prompt=[1, 2, 3], max_tokens=12, sampling=Sampling(temperature=0.0))
    first = found.submit(request)
    found.run()
    second, waits = found.submit(request), found.devices.read
    for number in range(6):

        def interrupted(*_):
            monkeypatch.setattr(found.devices, "read", waits)
            raise KeyboardInterrupt

        monkeypatch.setattr(found.devices, "read", interrupted if number % 2 else waits)
        with contextlib.suppress(KeyboardInterrupt):
            found.step()
    monkeypatch.setattr(found.devices, "read", waits)
    found.run()
    assert found.forget(second).tokens == found.forget(first).tokens and found.idle


def ringed(monkeypatch, **options):
    """An engine whose decode keeps states for the steps of a call, as one Hopper GPU does of many rows."""
    monkeypatch.setattr(decode_step, "serves", lambda model, rows: True)
    monkeypatch.setattr(decode_step, "LEAST_RINGED", 8)
    found = engines.engine(fresh=True, **options)
    assert found.devices.ringed and len(found.devices._decode_whole) == 2
    return found


def test_with_states_kept_for_a_call_random_schedules_have_the_bits_of_each_request_alone(monkeypatch):
    alone = ringed(monkeypatch)
    found = engines.Engine(engines.model(), like=alone, poison=True, vocab_size=engines.VOCAB, **engines.SIZES)
    cases, count, random = engines.Cases(alone, engines.VOCAB, 48, 40, seed=4), Count(), np.random.default_rng(5)
    for _ in range(4):
        run_schedule(found, cases, 32, random, count)
    assert (count.equal, count.different) == (128, 0)
    plain = engines.Cases(engines.alone(), engines.VOCAB, 48, 40, seed=4)
    assert any(plain.cold(n).logits[-1].tobytes() != cases.cold(n).logits[-1].tobytes() for n in range(8))
    drawn = {"sampling": Sampling(temperature=1.0), "max_tokens": 10}
    hook = {"mask": lambda said: [65 + len(said) % 3, 70] if len(said) % 4 else None}
    asked = [Request(prompt=[5, n], seed=n, **drawn, **(hook if n % 2 else {})) for n in range(6)]
    want = []
    for one in asked:
        want.append(alone.submit(one))
        alone.run()
    ids = [found.submit(one) for one in asked]
    for _ in range(3):
        found.step()
    found.preempt(ids[1])
    found.preempt(ids[2])
    found.run()
    for a, b in zip(want, ids, strict=True):
        first, second = alone.forget(a), found.forget(b)
        assert first.tokens == second.tokens
        assert [x.tobytes() for x in first.logits] == [x.tobytes() for x in second.logits]


@pytest.mark.parametrize("platform", slow_but(("cpu",), ("cpu", "gpu")))
def test_what_one_thread_lowers_no_other_compiles(monkeypatch, platform):
    """Its MLIR context is that thread's, which lowers the next program into it meanwhile."""
    monkeypatch.setattr(engine_compile, "dispatch", types.SimpleNamespace(platform=lambda: platform))
    threads = []

    def noting(function, **options):
        """`jit` whose programs note who lowers and who compiles them."""
        jitted = small.unoptimised(function, **options)
        return types.SimpleNamespace(trace=lambda *given, **told: Noted(jitted.trace(*given, **told), threads))

    monkeypatch.setattr(engine_devices, "jit", noting)
    engines.Engine(engines.model(), vocab_size=engines.VOCAB, **engines.SIZES)
    lowered, compiled = zip(*threads, strict=True)
    assert lowered == compiled
    assert (len({*lowered}) > 1) == (platform != "cpu"), "on accelerators some by the pool's threads"


class Noted:
    """A traced program."""

    def __init__(self, traced, threads: list):
        self._traced, self._threads = traced, threads

    def lower(self):
        here, lowered = threading.get_ident(), self._traced.lower()

        def compile():
            self._threads.append((here, threading.get_ident()))
            return lowered.compile()

        return types.SimpleNamespace(compile=compile)
