"""Grammars as hooks of the engine: what they let an answer say, where they end, and what has no way on is an error."""

import json

import numpy as np
import pytest

pytest.importorskip("llguidance")

from mm01_jax.data.tokenizer import BytesTokenizer, open_tokenizer  # noqa: E402
from mm01_jax.data.tool_calls import MINIMAX_01, MINIMAX_M1, Call  # noqa: E402
from mm01_jax.inference import masks  # noqa: E402
from mm01_jax.inference.grammars import MOST_CHARACTERS, Grammars  # noqa: E402
from mm01_jax.inference.serve import formats  # noqa: E402

BYTES = BytesTokenizer()
VOCAB, ENDS = 300, {0xFE, 256}  # a vocabulary that is rounded up
SCHEMA = {"type": "object", "properties": {"é": {"type": "integer"}}, "required": ["é"], "additionalProperties": False}


@pytest.fixture(scope="module")
def grammars():
    return Grammars(BYTES, VOCAB, ENDS)


def allowed(hook, tokens) -> set[int]:
    words = hook(list(tokens))
    assert words.dtype == np.uint32 and words.shape == (masks.num_words(VOCAB),)
    return {id for id in range(VOCAB) if words[id // 32] >> (id % 32) & 1}


def takes(hook, text: bytes) -> bool:
    """Whether a text is one of the grammar's, whole."""
    return all(text[at] in allowed(hook, text[:at]) for at in range(len(text))) and allowed(hook, text) >= ENDS


def rules(found: dict) -> str:
    return formats.grammar("answer", formats.form(found), {}, False)


def test_forms_take_what_they_say_and_nothing_else(grammars):
    for found, good, bad in (
        ({"type": "json_object"}, b'{"a": [1, "\\n"]}', b"[1]"),
        ({"type": "json_schema", "json_schema": SCHEMA}, '{"é": 12}'.encode(), b'{"e": 1}'),
        ({"type": "regex", "regex": "a/b\\/c[\n]x+"}, b"a/b/c\nxx", b"ab"),
        ({"type": "regex", "regex": "a\\\nb\\\\\n"}, b"a\nb\\\n", b"a\\nb\\\n"),
        ({"type": "grammar", "grammar": 'start: "a" b\nb: "b"+'}, b"abb", b"b"),
    ):
        hook = grammars.hook(rules(found))
        assert takes(hook, good) and not takes(hook, bad), found
    assert allowed(grammars.hook(rules({"type": "regex", "regex": "a"})), b"a") == ENDS


def test_blanks_of_json_have_an_end(grammars):
    hook = grammars.hook(rules({"type": "json_schema", "json_schema": SCHEMA}))
    assert ord(" ") in allowed(hook, b"{") and allowed(hook, b"{" + b" " * 40) == {ord('"')}


@pytest.mark.parametrize("form", [MINIMAX_01, MINIMAX_M1], ids=["minimax-01", "minimax-m1"])
def test_calls_are_those_that_the_form_writes_with_arguments_of_the_schema(grammars, form):
    tools = [{"name": "find", "parameters": SCHEMA}, {"name": "stop"}]
    several, one = (
        grammars.hook(formats.grammar("calls", formats.calls_of(tools, form, parallel, {}), {}, False))
        for parallel in (True, False)
    )
    two = form.written([Call("find", '{"é": 1}'), Call("stop", "{}")]).encode()
    assert takes(several, two) and not takes(one, two)
    assert takes(one, form.written([Call("stop", '{"x": 1}')]).encode())
    assert not takes(one, form.written([Call("find", "{}")]).encode())
    loose = [{"name": "find", "parameters": {"anyOf": [{"properties": {"a": {}}}, {"type": "string"}]}}]
    held = grammars.hook(formats.grammar("calls", formats.calls_of(loose, form, False, {}), {}, False))
    assert takes(held, form.written([Call("find", '{"a": 1}')]).encode())
    assert not takes(held, form.written([Call("find", '"a"')]).encode())


def test_thoughts_come_before_where_they_may_and_must_end_where_they_have_begun(grammars):
    answer = {"answer": '"a"'}
    free, begun = (
        grammars.hook(formats.grammar("answer", answer, formats.thoughts_of(has, {}), has)) for has in (False, True)
    )
    assert takes(free, b"a") and takes(free, b"<think>\nwhy?</think>\n\na") and not takes(free, b"why?")
    assert takes(begun, b"why?</think>\na") and not takes(begun, b"a")


def test_several_answers_ask_one_hook_and_each_has_its_own_place(grammars):
    hook, alone = (grammars.hook(rules({"type": "json_schema", "json_schema": SCHEMA})) for _ in range(2))
    texts = ['{"é": 1}'.encode(), '{ "é": 23}'.encode(), '{"é": 1}'.encode()]
    for at in range(9):
        for text in texts:
            assert allowed(hook, text[:at]) == allowed(alone, text[:at])
    assert allowed(hook, b"{") == allowed(alone, b"{")  # a request that begins again


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"type": "json_schema", "json_schema": {"type": "nope"}}, "nope"),
        ({"type": "json_schema", "json_schema": {"type": "integer", "minimum": 3, "maximum": 2}}, "Unsatisfiable"),
        ({"type": "json_schema", "json_schema": {"$ref": "http://127.0.0.1/x"}}, "does not fetch"),
        ({"type": "json_schema", "json_schema": {"$ref": "file:///etc/passwd"}}, "not present"),
        ({"type": "regex", "regex": "("}, "regex"),
        ({"type": "regex", "regex": "a(?=b)"}, "look-around"),
        ({"type": "regex", "regex": "a{99999999}"}, "too many expressions"),
        ({"type": "regex", "regex": "(a{1000}){1000}"}, "too many expressions"),
        ({"type": "regex", "regex": r"[^\s\S]"}, "nothing can match it"),
        ({"type": "grammar", "grammar": "start: start"}, "nothing can match it"),
        ({"type": "grammar", "grammar": 'start: a "b"\na[lazy]: /.*/'}, "llguidance cannot take this grammar"),
        ({"type": "grammar", "grammar": "x: y"}, ""),
        ({"type": "grammar", "grammar": "((("}, "expecting"),
        ({"type": "regex", "regex": "a" * MOST_CHARACTERS}, f"{MOST_CHARACTERS:,}"),
    ],
)
def test_what_is_no_grammar_is_refused_in_one_line(grammars, found, said):
    with pytest.raises(ValueError, match=r"^[^\n]{1,400}$") as caught:
        grammars.check(rules(found))
    assert said in str(caught.value)


def test_a_dead_end_is_an_error_of_its_request(grammars):
    hook = grammars.hook(rules({"type": "regex", "regex": "ab"}))
    free = np.ones(VOCAB, bool)
    assert masks.ask(hook, b"a", free).error is None
    assert "dead end" in masks.ask(hook, b"ax", free).error
    assert masks.ask(hook, b"a", free & (np.arange(VOCAB) != ord("b"))).error  # what may never be chosen
    assert masks.ask(hook, b"a", free).error is None
    endless = grammars.hook(rules({"type": "regex", "regex": "(?:a?){900}a{900}"}))
    assert "too many expressions" in masks.ask(endless, b"a", free).error  # within its limits, at once


def test_a_tokenizers_own_tokens_are_asked_for(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    letters = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer, made.decoder = letters, tokenizers.decoders.ByteLevel()
    names = ["<end_of_document>", "<function_call>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=letters.alphabet(), special_tokens=names, show_progress=False
    )
    made.train_from_iterator(["hello hello"] * 9, trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_tokenizer(str(tmp_path / "tokenizer.json"))
    found = Grammars(tokenizer, VOCAB, {tokenizer.end_of_document})
    hello = tokenizer.encode("hello").tolist()
    assert len(hello) < 5
    hook = found.hook(rules({"type": "regex", "regex": "hello"}))
    assert hello[0] in allowed(hook, []) and tokenizer.special("<function_call>") not in allowed(hook, [])
    assert allowed(hook, hello) == {tokenizer.end_of_document}
    call = formats.calls_of([{"name": "f"}], MINIMAX_01, True, tokenizer.specials)
    hook = found.hook(formats.grammar("calls", call, {}, False))
    assert allowed(hook, []) == {tokenizer.special("<function_call>")}
    assert json.loads(json.dumps(call)) == call
