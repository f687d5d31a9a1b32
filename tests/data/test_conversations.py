"""Conversations render as the official template does, and the mask marks what the assistant said."""

import numpy as np
import pytest

from mm01_jax.data.conversations import BEGIN, END, IMAGE, check_messages, render
from mm01_jax.data.tokenizer import BytesTokenizer

BYTES = BytesTokenizer()
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]


def spelled(ids) -> str:
    """Ids of bytes as text, special tokens by name."""
    names = {BYTES.special(name): name.encode() for name in (BEGIN, END, IMAGE)}
    return b"".join(names.get(int(i), bytes([int(i)])) for i in ids).decode()


def test_a_conversation_is_the_official_template_and_its_answers_are_marked():
    ids, answer = render(CHAT, BYTES, [2])
    assert spelled(ids) == (
        "<beginning_of_sentence>system ai_setting=assistant\nBe brief.<end_of_sentence>\n"
        "<beginning_of_sentence>user name=user\n<image><image>What is it?<end_of_sentence>\n"
        "<beginning_of_sentence>ai name=assistant\nA cat.<end_of_sentence>\n"
        "<beginning_of_sentence>user name=user\nSure?<end_of_sentence>\n"
        "<beginning_of_sentence>ai name=assistant\nYes.<end_of_sentence>\n"
    )
    assert spelled(ids[answer]) == "A cat.<end_of_sentence>Yes.<end_of_sentence>"
    assert ids.dtype == np.int32 and answer.dtype == bool


def test_a_prompt_ends_with_the_header_of_the_answer():
    prompt, full = render(CHAT[:4], BYTES, [2], generate=True), render(CHAT, BYTES, [2])
    assert np.array_equal(prompt.ids, full.ids[: len(prompt.ids)])
    assert np.flatnonzero(full.answer)[-5] == len(prompt.ids)  # "Yes." and the end of it


def test_the_plain_template_has_the_texts_alone():
    ids, answer = render(CHAT[1:3], BYTES, [2], template="plain")
    assert spelled(ids) == "<image><image>What is it?A cat.<end_of_sentence>"
    assert spelled(ids[answer]) == "A cat.<end_of_sentence>"


def test_text_and_parts_render_alike():
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    text = [{"role": "user", "content": "<image>What?"}]
    assert np.array_equal(render(parts, BYTES, [3]).ids, render(text, BYTES, [3]).ids)


def test_a_mark_is_text_where_no_image_can_be():
    ids = render([{"role": "user", "content": "an <image> of SVG"}], BYTES, None).ids
    assert "an <image> of SVG" in BYTES.decode(ids) and BYTES.special(IMAGE) not in ids


@pytest.mark.parametrize("images", [[], [1, 1]])
def test_more_or_fewer_marks_than_images_are_refused(images):
    with pytest.raises(ValueError, match=f"1 <image> mark in the text and {len(images)} image"):
        render(CHAT, BYTES, images)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], r"messages: got \[\]; allowed: a list of at least one message"),
        ("hello", "messages: got 'hello'; allowed: a list"),
        (["hello"], "message 0 has role 'hello'; allowed are system, user"),
        ([{"role": "bot", "content": "x"}], "message 0 has role 'bot'"),
        ([{"role": ["user"], "content": {"a": 1}}, 5], r"message 0 has role \['user'\]"),
        ([{"role": {}, "content": "x"}], "message 0 has role {}"),
        ([{"role": "user"}], "'user' has content None"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "a part of a message is {'type': 'audio'}"),
    ],
)
def test_what_is_no_conversation_is_refused(messages, says):
    with pytest.raises(ValueError, match=says):
        check_messages(messages)


def test_special_tokens_of_bytes_are_bytes_that_utf_8_never_has():
    every = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    assert not {*BYTES.specials.values()} & {*BYTES.encode(every).tolist()}


def test_an_unknown_special_token_is_refused_by_name():
    with pytest.raises(ValueError, match="'bytes' has no token <audio>"):
        BYTES.special("<audio>")


def test_a_conversation_of_very_many_messages_is_refused_before_its_tokens_are_made():
    said = {"role": "user", "content": "a"}
    check_messages([said] * 50_000)
    with pytest.raises(ValueError, match="messages: got 50,001; allowed: at most 50,000 of a conversation"):
        check_messages([said] * 50_001)
