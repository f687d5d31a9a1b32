"""An engine that leads others does what it does alone: every call is said to all, and done at the next step."""

import numpy as np
import pytest

from mm01_jax.data.tokenizer import BytesTokenizer
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
    with pytest.raises(ValueError, match="mask: got a hook; allowed: none over several processes"):
        led.submit(Request(prompt=[1], max_tokens=2, mask=len))
    led.close()
