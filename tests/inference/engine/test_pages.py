"""Pages that go many a call into a slot are those that go one by one."""

import numpy as np

from mm01_jax.inference import engine_devices
from mm01_jax.inference.drill.schedules import Count, run_schedule
from tests.inference.engine import engines


def test_pages_that_are_put_many_a_call_have_the_bits_of_each_request_alone(monkeypatch):
    monkeypatch.setattr(engine_devices, "MANY_PAGES", 2)
    engine, calls, count = engines.engine(fresh=True, poison=True, prefix_bytes=10**9), [], Count()
    put = engine.devices._put_pages
    engine.devices._put_pages = lambda slots, pages, *at: calls.append(len(pages)) or put(slots, pages, *at)
    for _ in range(2):
        run_schedule(engine, engines.cases(), 32, np.random.default_rng(7), count)
    assert (count.equal, count.different) == (64, 0)
    assert len(calls) > 10 and set(calls) == {2}
