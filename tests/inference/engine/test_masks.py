"""Laws of masks: an answer says what its hook allows, others what they say anyway, and a wrong hook ends its own."""

import functools
import re

import numpy as np
import pytest

from mm01_jax.inference import masks
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_request import Request, Result
from mm01_jax.inference.sampling import Sampling
from tests.inference.engine import engines

DRAWS = Sampling(temperature=1.0)
V = 320


@functools.cache
def engine() -> Engine:
    return engines.engine(drafts=2, prefix_bytes=10**7)


def request(**options) -> Request:
    return Request(**{"prompt": [5, 6, 7], "max_tokens": 12, "sampling": DRAWS, **options})


def answer(asked: Request) -> Result:
    id = engine().submit(asked)
    engine().run()
    return engine().forget(id)


def alternating(tokens: list[int]):
    """Vowels and digits in turn, each time in another of the forms that a hook may return."""
    ids = [*b"aeiou"] if len(tokens) % 2 == 0 else [*b"0123456789"]
    mask_V = np.isin(np.arange(V), ids)
    forms = ids, tuple(ids), set(ids), mask_V, masks.packed(mask_V), masks.packed(mask_V).view(np.int32)
    return forms[len(tokens) % len(forms)]


def test_every_form_of_a_hook_s_answer_is_kept_to():
    found = bytes(answer(request(mask=alternating)).tokens)
    assert re.fullmatch(rb"([aeiou][0-9]){6}", found) and len(set(found)) > 4


def test_beside_others_preempted_and_in_samples_a_hook_gives_the_same_bits():
    asked, other = request(mask=alternating, seed=3), request(seed=4)
    alone, beside = answer(asked), answer(other)
    ids = [engine().submit(one) for one in (asked, other)]
    for _ in range(4):
        engine().step()
    engine().preempt(ids[0])
    engine().run()
    for id, want in zip(ids, (alone, beside), strict=True):
        found = engine().forget(id)
        assert found.tokens == want.tokens
        assert [x.tobytes() for x in found.logits] == [x.tobytes() for x in want.logits]
    first, second = engine().submit_samples(asked, 2)
    engine().run()
    assert engine().forget(first).tokens == alone.tokens != engine().forget(second).tokens


def test_a_hook_is_not_asked_while_it_said_that_anything_may_come():
    asked = []

    def mask(tokens):
        asked.append(len(tokens))
        return 5 - len(tokens) if len(tokens) < 5 else [65]

    free, found = answer(request()), answer(request(mask=mask))
    assert found.tokens == free.tokens[:5] + [65] * 7
    assert asked[0] == 0 and len([n for n in asked if n < 5]) < 5, "four steps a call"


def failing(tokens):
    raise KeyError("nothing of that name")


@pytest.mark.parametrize(
    "mask, error",
    [
        (lambda tokens: [65] if len(tokens) < 3 else [], "mask: no id that may be chosen is allowed"),
        (lambda tokens: [65] if len(tokens) < 3 else [300], "mask: no id that may be chosen is allowed"),
        (lambda tokens: [65] if len(tokens) < 3 else 0, "mask: returned 0; allowed: a whole number at least 1"),
        (lambda tokens: [65] if len(tokens) < 3 else [V], "mask: returned the id 320; allowed: 0 to 319"),
        (lambda tokens: [65] if len(tokens) < 3 else "b", "mask: returned a str; allowed: ids in a list, bool[320], "),
        (lambda tokens: [65] if len(tokens) < 3 else np.ones(7), "mask: returned float64[7]; allowed: ids in a list"),
        (lambda tokens: [65] if len(tokens) < 3 else failing(tokens), "mask: 'nothing of that name'"),
    ],
)
def test_a_hook_that_leaves_nothing_or_is_wrong_ends_its_own_answer_alone(mask, error):
    other = engine().submit(request(seed=9))
    found = answer(request(mask=mask))
    assert (found.tokens, found.finish) == ([65] * 3, "masked") and found.error.startswith(error)
    assert engine().forget(other).finish == "length"
    assert engine().statistics()["free_slots"] == 8


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: engine().step(), "step"),
        (lambda: engine().run(), "step"),
        (lambda: next(engine().stream(engine().submit(request()))), "step"),
        (lambda: engine().cancel(engine().asked - 1), "cancel"),
        (lambda: engine().preempt(engine().asked - 1), "preempt"),
        (lambda: engine().use(engines.model()), "use"),
    ],
)
def test_a_hook_that_calls_its_engine_ends_its_own_answer_alone(call, name):
    alone, other = answer(request(seed=9)), engine().submit(request(seed=9))
    found = answer(request(mask=lambda tokens: [65] if len(tokens) < 3 else call()))
    why = "requests are under way" if name == "use" else "called by a hook of a request; allowed: between two steps"
    assert (found.tokens, found.finish) == ([65] * 3, "masked") and found.error.startswith(f"mask: {name}: ")
    assert why in found.error and engine().forget(other).tokens == alone.tokens
    assert engine().idle and engine().statistics()["free_slots"] == 8


def test_a_hook_may_ask_its_engine_for_more():
    asked = []
    found = answer(request(max_tokens=2, mask=lambda tokens: asked.append(engine().submit(request(seed=9)))))
    want = answer(request(seed=9)).tokens
    assert found.finish == "length" and [engine().forget(id).tokens for id in asked] == [want] * len(asked)


def test_what_is_no_hook_is_refused():
    with pytest.raises(ValueError, match="mask: got 'json'; allowed: a function of the tokens so far, or None"):
        engine().submit(request(mask="json"))


def test_bits_are_the_mask():
    for size in (1, 31, 32, 33, 320):
        mask_V = np.random.default_rng(size).random(size) < 0.5
        words = masks.packed(mask_V)
        assert len(words) == masks.num_words(size)
        assert [bool(words[i // 32] >> (i % 32) & 1) for i in range(size)] == mask_V.tolist()


def test_programs_of_another_engine_choose_among_the_ids_of_this_one():
    other = Engine(engines.model(), like=engines.alone(), vocab_size=20, **engines.SIZES)
    id = other.submit(Request(prompt=[5, 6], max_tokens=8))
    other.run()
    assert max(other.forget(id).tokens) < 20
