"""An engine that leads others does what it does alone: every call is said to all, and done at the next step."""

import dataclasses

import numpy as np
import pytest

from mm01_jax.data.tokenizer import BytesTokenizer
from mm01_jax.inference import engine_processes, masks
from mm01_jax.inference.engine_processes import lead
from mm01_jax.inference.engine_request import Request
from tests.inference.engine import engines


def test_led_an_engine_does_what_it_does_alone():
    """In one process, which is all of them."""
    wants = np.int64(0)  # a number of NumPy's is one
    asked = [Request(prompt=[5, 6, n], max_tokens=12, seed=n, stop="b", logprobs=wants) for n in range(3)]
    engine = engines.engine(tokenizer=BytesTokenizer(), vocab_size=None)
    ids = [engine.submit(one) for one in asked]
    engine.run()
    want = [engine.forget(id) for id in ids]
    led = lead(engine)
    first, second = led.submit(asked[0]), led.submit(asked[1])
    assert "".join(led.stream_text(first)) == want[0].text
    samples = led.submit_samples(asked[2], 2)
    led.preempt(samples[0])  # it has no slot yet
    assert list(led.stream(samples[0])) == want[2].tokens
    led.preempt(samples[1])
    led.run()
    for id, result in zip((first, second, samples[0]), want, strict=True):
        found = led.forget(id)
        assert (found.tokens, found.logprobs, found.text) == (result.tokens, result.logprobs, result.text)
    for id in (first, 99):  # the first before the others have heard that it is forgotten, then after it
        for _ in range(2):
            for call in (led.cancel, led.preempt, led.result, led.forget):
                with pytest.raises(ValueError, match="knows none of this id"):
                    call(id)
            led.step()
    led.close()


def alternating(tokens: list[int]):
    """Letters as a mask of all ids, then anything for two tokens, and an end that is none."""
    if len(tokens) == 9:
        return "no mask"
    return np.isin(np.arange(320), [*b"aeiou"]) if len(tokens) % 3 == 0 else 3 - len(tokens) % 3


def test_led_an_engine_keeps_to_hooks_which_the_first_process_alone_asks():
    asked = [Request(prompt=[5, 6, n], max_tokens=12, seed=n, mask=hook) for n, hook in enumerate((alternating, None))]
    asked.append(dataclasses.replace(asked[0], mask=lambda tokens: [65 + len(tokens)]))
    answers, led = [], lead(engines.engine())
    for engine in (engines.engine(), led):
        ids = [engine.submit(one) for one in asked] + engine.submit_samples(asked[0], 2)
        engine.run()
        found = [engine.forget(id) for id in ids]
        said = [(one.tokens, one.finish, one.error) for one in found]
        assert [one[1] for one in said] == ["masked", "length", "length", "masked", "masked"]
        assert said[2][0] == [*range(65, 77)] and said[0] == said[3] != said[4]
        assert said[0][2].startswith("mask: returned a str; allowed: ids in a list")
        answers.append(said)
    assert answers[0] == answers[1]
    led.close()


def test_what_hooks_say_comes_as_it_was_sent(monkeypatch):
    sent = []
    monkeypatch.setattr(engine_processes, "_from_first", lambda data: sent.append(data) or data)
    allowed_V = np.ones(70, bool)
    asked = [
        (lambda _: [3, 69], []),
        (lambda _: None, []),
        (lambda _: 5, [1]),
        (lambda _: [], []),
        (lambda _: [10], []),
    ]
    said = engine_processes._ask_and_say(asked, allowed_V)
    for one, want in zip(said, masks.ask_all(asked, allowed_V), strict=True):
        assert (one.free, one.error) == (want.free, want.error)
        assert (one.words is None) == (want.words is None) and np.array_equal(one.words, want.words)
    assert [one.error for one in said] == [None] * 3 + ["mask: no id that may be chosen is allowed", None]


def test_a_hook_that_calls_the_engine_that_leads_ends_its_own_answer():
    led = lead(engines.engine())
    ids = [
        led.submit(Request(prompt=[5, 6], max_tokens=4, mask=mask)) for mask in (lambda tokens: led.run(), lambda _: 1)
    ]
    led.run()
    wrong, other = map(led.forget, ids)
    assert (wrong.finish, other.finish) == ("masked", "length")
    assert wrong.error == "mask: step: called by a hook of a request; allowed: between two steps"
