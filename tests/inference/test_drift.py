"""Laws of drift: decode, chunks and one shot in bfloat16 are equally far from float32, however many tokens came."""

import pytest

from tests import small
from tests.inference import drift
from tests.slow import slow_but


@pytest.mark.parametrize("count", slow_but((256,), (256, 4096)))
def test_decode_in_bfloat16_is_no_further_from_float32_than_a_fresh_prefill(count, monkeypatch):
    monkeypatch.setattr(drift, "jit", small.unoptimised)
    found = dict(drift.measure(64, 8, count, {"decode": 1, "chunks": 64, "one shot": count}))
    for way in ("decode", "chunks"):
        for name, error in found[way].items():
            assert error <= 2 * found["one shot"][name], (way, name, found)
