"""Laws of an answer's text: it ends before a stop wherever tokens cut it, and what streams is never taken back."""

import dataclasses
import functools

import numpy as np
import pytest

from mm01_jax.data.tokenizer import BytesTokenizer
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_request import Request, Result
from mm01_jax.inference.sampling import Sampling
from tests.inference.engine import engines

FREE = Sampling(temperature=1.0)
LETTERS = Sampling(temperature=1.0, logit_bias=dict.fromkeys(b"abc", 40.0))
PROMPT = (1, 2, 3)


@functools.cache
def engine() -> Engine:
    return engines.engine(tokenizer=BytesTokenizer(), vocab_size=None)


def answer(**options) -> Result:
    id = engine().submit(Request(**{"prompt": PROMPT, "max_tokens": 40, "sampling": LETTERS, **options}))
    engine().run()
    return engine().forget(id)


@pytest.mark.parametrize("seed", range(6))
def test_an_answer_ends_with_the_token_that_completes_a_stop_and_its_text_before(seed):
    free = answer(seed=seed, logprobs=0)
    assert free.text == bytes(free.tokens).decode() and free.finish == "length"
    stop = free.text[5 + seed : 8 + seed]
    stopped, end = answer(seed=seed, logprobs=0, stop=stop), free.text.index(stop)
    assert (stopped.text, stopped.finish) == (free.text[:end], "stop")
    assert stopped.tokens == free.tokens[: end + 3]
    assert stopped.logprobs == free.logprobs[: end + 3] and len(stopped.logits) == end + 3


@pytest.mark.parametrize("steps", (1, 2, 3))
def test_a_streamed_text_never_shows_a_part_of_a_stop_however_many_tokens_a_call_draws(steps, monkeypatch):
    free = answer(seed=3).text
    stop = free[9:12]
    monkeypatch.setattr(engine(), "sizes", dataclasses.replace(engine().sizes, steps=steps))
    id = engine().submit(Request(prompt=PROMPT, max_tokens=40, sampling=LETTERS, seed=3, stop=[stop, "zz"]))
    shown = ""
    for piece in engine().stream_text(id):
        shown += piece
        assert piece and free[: free.index(stop)].startswith(shown)
    assert shown == engine().forget(id).text == free[: free.index(stop)]


def test_half_a_character_waits_and_is_shown_in_the_end():
    two = Sampling(temperature=1.0, logit_bias={0xC3: 60.0})
    id = engine().submit(Request(prompt=PROMPT, max_tokens=6, sampling=two))
    pieces = [*engine().stream_text(id)]
    assert "".join(pieces) == engine().forget(id).text == "\ufffd" * 6


def test_a_stop_id_is_no_part_of_the_text():
    free = answer(sampling=FREE)
    stop = free.tokens[7]
    stopped = answer(sampling=FREE, stop_ids=(stop,), stop="no such text")
    count = free.tokens.index(stop)
    assert stopped.tokens == free.tokens[: count + 1]
    assert stopped.text == BytesTokenizer().decode(free.tokens[:count])


def test_samples_of_one_prompt_end_each_at_its_own_stop():
    asked = Request(prompt=PROMPT, max_tokens=30, sampling=LETTERS, seed=5, stop="ab")
    ids = engine().submit_samples(asked, 5)
    engine().run()
    found = [engine().forget(id) for id in ids]
    assert len({len(result.tokens) for result in found}) > 1
    for result in found:
        whole = bytes(result.tokens).decode()
        assert result.text == whole.partition("ab")[0]
        assert (result.finish == "stop") == whole.endswith("ab") == ("ab" in whole)


@pytest.mark.parametrize(
    "stop, message",
    [("", "stop: got ''"), (7, r"stop: got the id 7; .* nearest: stop_ids=\(7,\)"), ([1.5], "stop: got 1.5")],
)
def test_what_is_no_text_to_stop_at_is_refused(stop, message):
    with pytest.raises(ValueError, match=message):
        engine().submit(Request(prompt=PROMPT, max_tokens=6, stop=stop))
    assert engine().idle


def test_an_engine_without_a_tokenizer_refuses_texts():
    with pytest.raises(ValueError, match=r"stop: got 'x'; allowed: ids in stop_ids, or an Engine\(tokenizer=...\)"):
        engines.alone().submit(Request(prompt=np.array(PROMPT), max_tokens=6, stop="x"))
