"""The template of MiniMax-M1: its text, which of it the model said, and what it refuses."""

import json

import numpy as np
import pytest

from mm01_jax.data import templates
from mm01_jax.data.conversations import BEGIN, END
from mm01_jax.data.m1_template import DOCUMENT, M1
from mm01_jax.data.tokenizer import BytesTokenizer


class Tokenizer(BytesTokenizer):
    """Bytes, with one more that no text has."""

    name = "bytes with a document's begin"
    specials = BytesTokenizer.specials | {DOCUMENT: 0xFC}


TOKENIZER = Tokenizer()
NAMES = {TOKENIZER.specials[name]: name for name in (DOCUMENT, BEGIN, END)}
THOUGHT = "<think>\nTwo and two.\n</think>\n4"
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]},
    {"role": "assistant", "content": THOUGHT},
    {
        "role": "tool",
        "content": [{"name": "add", "type": "text", "text": "4"}, {"name": "é", "type": "text", "text": "5"}],
    },
]


def text(ids) -> str:
    return b"".join(NAMES[int(i)].encode() if int(i) in NAMES else bytes([int(i)]) for i in ids).decode()


def test_a_conversation_is_a_document_whose_answers_hold_their_thoughts():
    found = M1().render(CHAT, TOKENIZER)
    assert text(found.ids) == (
        f"{DOCUMENT}{BEGIN}system ai_setting=assistant\nBe brief.{END}\n{BEGIN}user name=user\n2 + 2?{END}\n"
        f"{BEGIN}ai name=assistant\n{THOUGHT}{END}\n"
        f"{BEGIN}tool name=tools\ntool name: add\ntool result: 4\ntool name: é\ntool result: 5\n{END}\n"
    )
    assert text(found.ids[found.answer]) == THOUGHT + END
    assert M1().stop(TOKENIZER) == TOKENIZER.specials[END]


def test_tools_stand_between_the_system_s_message_and_the_first_of_a_user():
    tools = [{"name": "add", "parameters": {"type": "é"}}]
    found = text(M1().ids(CHAT[:2], TOKENIZER, tools))
    before, after = found.split(f"{BEGIN}system tool_setting=tools\nYou are provided with these tools:\n<tools>\n")
    assert before == f"{DOCUMENT}{BEGIN}system ai_setting=assistant\nBe brief.{END}\n"
    assert after.startswith(f"{json.dumps(tools[0], ensure_ascii=False)}\n</tools>\n\nIf you need to call tools")
    assert after.endswith(f"</tool_calls>{END}\n{BEGIN}user name=user\n2 + 2?{END}\n{BEGIN}ai name=assistant\n")


def test_what_a_tool_returned_may_be_one_text():
    found = text(M1().render([{"role": "tool", "content": "4"}], TOKENIZER).ids)
    assert found == f"{DOCUMENT}{BEGIN}tool name=tools\ntool result: 4\n{END}\n"


def test_a_tokenizer_with_a_document_s_begin_gets_this_template_where_none_lies_with_it(tmp_path):
    assert isinstance(templates.choose(None, [tmp_path], TOKENIZER), M1)
    assert isinstance(templates.choose("minimax-m1", [tmp_path], BytesTokenizer()), M1)


@pytest.mark.parametrize(
    ("messages", "tokenizer", "named"),
    [
        ([], TOKENIZER, r"messages: got \[\]; allowed: a list of at least one message"),
        ([{"role": "function", "content": "x"}], TOKENIZER, "message 0 has role 'function'; allowed are system, user"),
        ([{"role": "tool", "content": 4}], TOKENIZER, "content 4; allowed are text or a list of parts"),
        (CHAT, BytesTokenizer(), f"no token {DOCUMENT}"),
    ],
)
def test_what_is_no_conversation_of_its_form_is_refused(messages, tokenizer, named):
    with pytest.raises(ValueError, match=named):
        M1().ids(messages, tokenizer)


def test_ids_are_int32():
    assert M1().ids(CHAT, TOKENIZER).dtype == np.int32
