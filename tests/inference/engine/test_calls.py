"""Laws of calls of decode: which program takes one, and when the host reads it, change no bit."""

import numpy as np

from mm01_jax.inference import engine_devices
from mm01_jax.inference.drill.schedules import Count, run_schedule
from mm01_jax.inference.engine_request import Request
from mm01_jax.inference.sampling import Sampling
from tests.inference.engine import engines


def test_a_program_of_its_own_for_likeliest_tokens_gives_the_same_bits(monkeypatch):
    """What GPUs have: whether it is taken follows from who else decodes."""
    monkeypatch.setattr(engine_devices, "PLAIN", ("cpu",))
    found, taken = engines.engine(fresh=True, poison=True), []
    plain = found.devices._decode_plain
    monkeypatch.setattr(found.devices, "_decode_plain", lambda *told: taken.append(1) or plain(*told))
    count, random = Count(), np.random.default_rng(2)
    for _ in range(4):
        run_schedule(found, engines.cases(), 32, random, count)
    assert (count.equal, count.different) == (128, 0) and taken


def test_the_next_call_of_decode_begins_before_the_last_one_is_read(monkeypatch):
    found, order = engines.engine(), []
    for name in ("decode", "read"):
        whole = getattr(found.devices, name)
        monkeypatch.setattr(found.devices, name, lambda *a, n=name, w=whole, **k: order.append(n) or w(*a, **k))
    id = found.submit(Request(prompt=[1, 2, 3], max_tokens=12, sampling=Sampling(temperature=0.0)))
    found.run()
    assert len(found.forget(id).tokens) == 12
    assert order == ["decode", "decode", "read", "decode", "read", "read"], "three calls, none for nothing"
