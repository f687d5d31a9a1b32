"""Laws of what is read in an answer: thoughts, text and calls are the same however its bytes come."""

import json
import random

import pytest

from mm01_jax.data.tokenizer import BytesTokenizer
from mm01_jax.data.tool_calls import HERMES, MINIMAX_01, MINIMAX_M1, Call, form_of
from mm01_jax.inference.serve.parser import Message, Parser, Reading, message
from mm01_jax.inference.stops import Stops, TextStream
from tests.slow import slow_but

FORMS = [MINIMAX_01, MINIMAX_M1, HERMES]
TOOLS = ("find", "set_alarm", "x-1")
BYTES = BytesTokenizer()
A, B = Call("find", '{"q": "é } \\" ] 好 </tool_calls> ```"}'), Call("x-1", "{}")


def read(text: str, reading: Reading, cuts=()) -> list:
    """The parts of a text whose bytes come in pieces, as tokens become text."""
    stream, parser, parts, data = TextStream(BYTES, Stops()), Parser(reading), [], text.encode()
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        parts += parser.take(stream.take(data[start:stop]))
    return parts + parser.take(stream.end()) + parser.end()


def tools(form, **more) -> Reading:
    return Reading(form=form, names=TOOLS, **more)


@pytest.mark.parametrize("form", FORMS, ids=["minimax-01", "minimax-m1", "hermes"])
def test_what_a_form_writes_is_read_as_it_was(form):
    text = f"Let me see.\n\n{form.written([A, B])}\n"
    assert message(read(text, tools(form))) == Message("", "Let me see.", [A, B])
    assert message(read(form.written([A]) + " Done.", tools(form))) == Message("", "Done.", [A])
    assert message(read(text, tools(form, most=1))).calls == [A]
    assert message(read(text, Reading())) == Message("", text, [])  # no tool was offered
    thinks = tools(form, thinks=True)
    assert message(read(f"<think>\nIf {form.written([A])}?\n</think>\n\n{form.written([B])}", thinks)) == Message(
        f"If {form.written([A])}?", "", [B]
    )
    assert message(read("so\n</think>\n\nyes", Reading(thinks=True, begun=True))) == Message("so", "yes", [])


@pytest.mark.parametrize(
    ("form", "text", "said", "calls"),
    [
        (MINIMAX_M1, '<tool_calls>\n{"name": "other", "arguments": {}}\n</tool_calls>', None, []),
        (MINIMAX_M1, '<tool_calls>\n{"nam', None, []),
        (MINIMAX_M1, "<tool_calls>\n{not JSON}\n</tool_calls>", None, []),
        (MINIMAX_M1, '<tool_calls>\n{"name": "\\x", "arguments": {}}\n</tool_calls>', None, []),
        (MINIMAX_M1, '<tool_calls>\n{"name": "find", "arguments": {}}\n</tool_ca', "", [Call("find", "{}")]),
        (MINIMAX_M1, '<tool_calls>{"arguments": {"a": "{"}, "name": "find"}', "", [Call("find", '{"a": "{"}')]),
        (MINIMAX_M1, '<tool_calls>{"name": "find", "arguments": "{\\"a\\": 1}"}', "", [Call("find", '{"a": 1}')]),
        (MINIMAX_M1, '<tool_calls>{"name": "find", "arguments": 3}</tool_calls>', None, []),
        (MINIMAX_M1, '<tool_calls>{"arguments": {"a": "\\ud800"}, "name": "find"}</tool_calls>', None, []),
        (MINIMAX_M1, '<tool_calls>\n{"name": "find", "arguments": {"a": [1', "", [Call("find", '{"a": [1')]),
        (MINIMAX_M1, "a <tool_calls> b", None, []),
        (MINIMAX_M1, "a <tool_calls></tool_calls>", "a", []),
        (MINIMAX_M1, "  a \n <tool_", None, []),
        (MINIMAX_01, "<function_call>```typescript\nfunctions.other({})\n```", None, []),
        (MINIMAX_01, "<function_call>```python\nfunctions.find({})\n```", None, []),
        (MINIMAX_01, "<function_call>```typescript\nfunctions.find(3)\n```", None, []),
        (MINIMAX_01, "<function_call> ```typescript functions.find( {} );\n``", "", [Call("find", "{}")]),
        (HERMES, '<tool_call>{"name": "find"}</tool_call> then', "then", [Call("find", "{}")]),
    ],
)
def test_what_is_no_call_is_text_as_it_stands_whatever_its_pieces(form, text, said, calls):
    want = Message("", text if said is None else said, calls)
    assert message(read(text, tools(form))) == want
    for cut in range(1, len(text.encode())):
        assert message(read(text, tools(form), [cut])) == want, cut


def test_a_template_of_others_has_the_form_whose_marks_it_teaches():
    assert form_of("minimax-01") is MINIMAX_01 and form_of("x", "... <tool_call> ...") is HERMES
    assert form_of("x", "<tool_calls>") is MINIMAX_M1 and form_of("x", "{{ messages }}") is None


def reply(random: random.Random, form) -> str:
    """A text of what answers are made of, whole and broken."""
    words = ["a", " b", "é", "好", "🙂", "\n", "\n\n", "  ", "<", "`", "```", "{", "}", '"', "\\", ",", "<think>"]
    words += ["</think>", form.open, form.close, f"{form.open}{form.lead}\n", '{"name": "find", "arguments": ']
    words += ["functions.find(", "functions.", '"name"']

    def call() -> Call:
        arguments = {random.choice("aé"): random.choice(["} ]", '"', "\\", form.close, 3, None, ["好", {}]])}
        return Call(random.choice([*TOOLS, "other"]), json.dumps(arguments, ensure_ascii=random.random() < 0.5))

    def piece() -> str:
        if random.random() < 0.25:
            text = form.written([call() for _ in range(random.randint(1, 3))])
            return text[: random.randint(0, len(text))] if random.random() < 0.3 else text
        return random.choice(words)

    start = random.choice(["", "", "<think>\n", "\n<think>"])
    return start + "".join(piece() for _ in range(random.randint(0, 8)))


@pytest.mark.parametrize("step", slow_but({100}, [100, 1]))
def test_500_random_replies_split_at_every_byte_are_the_whole_ones(step):
    """step: of the splits in two, by default one in so many, another for each reply; splits into bytes all."""
    called = thought = 0
    for number in range(500):
        dice = random.Random(number)
        form = dice.choice(FORMS)
        reading = tools(form, thinks=dice.random() < 0.5, most=dice.choice([None, 1]))
        text = reply(dice, form)
        want, length = message(read(text, reading)), len(text.encode())
        called, thought = called + bool(want.calls), thought + bool(want.thinking)
        for cuts in [[cut] for cut in range(1 + number % step, length, step)] + [range(1, length)]:
            assert message(read(text, reading, cuts)) == want, (number, text, cuts)
    assert called > 100 and thought > 50
