"""What an engine cannot be made with is refused by name, with what may be, before anything is compiled."""

import inspect

import pytest

from mm01_jax.inference import engine_devices, engine_room, engine_sizes
from mm01_jax.inference.engine import Engine
from tests.inference.engine import engines


@pytest.mark.parametrize(
    "sizes, message",
    (
        ({"grid": 257}, "grid: got 257; allowed: up to 256"),
        ({"grid": 9}, "max_length: got 64; allowed: a multiple of grid=9; nearest: 72"),
        ({"num_slots": 0}, "num_slots: got 0"),
        ({"pieces": 3, "wide": 2}, "pieces: got 3; allowed: a multiple of wide=2; nearest: 4"),
        ({"gird": 8}, "gird: the engine has no such argument; .* nearest: grid"),
        ({"prefix_byte": 3}, "prefix_byte: the engine has no such argument; .* nearest: prefix_bytes"),
        ({"num_slots": True}, "num_slots: got True; allowed: a whole number at least 1; nearest: 1"),
        ({"num_slots": 10**6}, "num_slots: got 1000000; allowed: up to 65536; nearest: 65536"),
        ({"max_length": 64.0}, "max_length: got 64.0; allowed: a whole number"),
        ({"max_length": 2**40}, "max_length: got 1099511627776; allowed: up to 1073741824"),
        ({"grid": float("nan")}, "grid: got nan; allowed: a whole number"),
        ({"steps": float("inf")}, "steps: got inf; allowed: up to 1024; nearest: 1024"),
        ({"pieces": "8"}, "pieces: got '8'; allowed: a whole number"),
        ({"wide": None}, "wide: got None; allowed: a whole number"),
        ({"drafts": True}, "drafts: got True; allowed: a whole number at least 0"),
        ({"drafts": -1}, "drafts: got -1; allowed: a whole number at least 0; nearest: 0"),
        ({"stop_ids": 0}, "stop_ids: got 0; allowed: a whole number at least 1"),
        ({"logprobs": 101}, "logprobs: got 101; allowed: up to 100; nearest: 100"),
        ({"keep_logits": 1}, "keep_logits: got 1; allowed: True or False"),
        ({"deterministic": "no"}, "deterministic: got 'no'; allowed: True or False"),
        ({"routed_experts": None}, "routed_experts: got None; allowed: True or False"),
    ),
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused_with_the_nearest_that_do(sizes, message):
    with pytest.raises(ValueError, match=message):
        engines.engine(**sizes)


def test_a_size_that_is_needed_and_not_given_is_named():
    for given, missing in (({}, "num_slots"), ({"num_slots": 2}, "max_length")):
        with pytest.raises(ValueError, match=f"{missing}: got None; allowed: a whole number at least 1; nearest: 1"):
            Engine(None, **given)


@pytest.mark.parametrize(
    "counts, message",
    (
        ({"budget": 0}, "budget: got 0; allowed: a whole number at least 1"),
        ({"prefix_bytes": -1}, "prefix_bytes: got -1"),
        ({"host_bytes": 0.5}, "host_bytes: got 0.5"),
        ({"prefix_bytes": 10**6, "path_states": 0}, "path_states: got 0"),
        ({"snapshots": 0}, "snapshots: got 0; allowed: a whole number at least 1"),
        ({"snapshots": True}, "snapshots: got True"),
        ({"prefix_bytes": float("nan")}, "prefix_bytes: got nan; allowed: a whole number at least 0"),
        ({"budget": False}, "budget: got False; allowed: a whole number at least 1"),
        ({"vocab_size": 0}, "vocab_size: got 0; allowed: a whole number at least 1 and at most 320"),
        ({"vocab_size": 321}, "vocab_size: got 321; allowed: a whole number at least 1 and at most 320"),
        ({"vocab_size": True}, "vocab_size: got True"),
        ({"vocab_size": -1}, "vocab_size: got -1"),
        ({"vocab_size": 257.0}, "vocab_size: got 257.0"),
        ({"poison": 1}, "poison: got 1; allowed: True or False"),
        ({"tokenizer": "bytes"}, "tokenizer: got a str, which has no decode; allowed: a Tokenizer or None"),
        ({"like": "engine", "fresh": True}, "like: got a str; allowed: Engine or None"),
    ),
    ids=str,
)
def test_counts_that_are_none_are_refused_before_anything_is_compiled(counts, message, monkeypatch):
    monkeypatch.setattr(engine_devices.Devices, "_compile", lambda *_: pytest.fail("compiled"))
    with pytest.raises(ValueError, match=message):
        engines.engine(**counts)
    with pytest.raises(ValueError, match="model: got a str; allowed: TextModel or VLModel"):
        Engine("tiny", num_slots=8, max_length=64)


def test_every_argument_of_an_engine_may_be_the_nearest():
    own = set(inspect.signature(Engine).parameters) - {"model", "sizes"}
    assert own - {"num_slots", "max_length"} == set(engine_sizes.OTHERS)


@pytest.mark.parametrize(
    "prefix_bytes, free, nearest", ((0, 60_000, "num_slots=4"), (8_000, 8_000, "fewer prefix_bytes"))
)
def test_slots_that_fit_no_device_are_refused_with_the_numbers_before_anything_is_compiled(
    prefix_bytes, free, nearest, monkeypatch
):
    needed = 8 * engines.engine(poison=True).statistics()["slot_bytes"]
    monkeypatch.setattr(engine_devices.Devices, "_compile", lambda *_: pytest.fail("compiled"))
    monkeypatch.setattr(engine_room, "free_bytes", lambda device: free)
    message = rf"num_slots=8, max_length=64, prefix_bytes={prefix_bytes}: need {needed:,} and {prefix_bytes:,} bytes"
    with pytest.raises(ValueError, match=rf"{message} of a device; allowed: {free:,}, .* nearest: {nearest}"):
        engines.engine(prefix_bytes=prefix_bytes, fresh=True)
