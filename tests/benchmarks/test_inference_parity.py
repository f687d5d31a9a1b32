"""Parity compares two programs: what is asked for on the plain path is not what our kernels' path has left behind."""

import jax.numpy as jnp

from benchmarks.inference.bench import plain_path
from benchmarks.inference.prefill import Programs
from mm01_jax.inference import steps
from pallas_kernels import dispatch
from tests import small


def test_programs_are_traced_on_the_path_that_is_in_force(monkeypatch):
    def step(model, cache, token_B, active_B):
        return jnp.float32(dispatch.why_not_hopper() == "the plain path was asked for"), cache

    monkeypatch.setattr(steps, "decode_step", step)
    with small.one_device():
        model = small.model()

    def is_plain() -> float:
        return float(Programs(model).decode(jnp.zeros(1), jnp.zeros(1, jnp.int32))[0])

    assert is_plain() == 0
    with plain_path():
        assert is_plain() == 1
    assert is_plain() == 0
