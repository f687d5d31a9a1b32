"""Conversations as token ids: the official template, and which tokens are the answers (docs/model.md B.5).

    <beginning_of_sentence>user name=user\\n{text}<end_of_sentence>\\n
    <beginning_of_sentence>ai name=assistant\\n{answer}<end_of_sentence>\\n

An answer is the assistant's text and the <end_of_sentence> behind it: what a model has to say by itself. `<image>` in a
text stands for the next image. Roles and their headers are `HEADERS`.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.data.tool_calls import MINIMAX_01, Call, Form
from mm01_jax.files import quoted
from mm01_jax.messages import counted

MOST_MESSAGES = 50_000  # of a conversation: each takes a kilobyte while its tokens are made
BEGIN, END, IMAGE = "<beginning_of_sentence>", "<end_of_sentence>", "<image>"
HEADERS = {
    "system": "system ai_setting=assistant\n",
    "user": "user name=user\n",
    "assistant": "ai name=assistant\n",
    "function": "system function_response=functions\n",
    "tools": "system function_setting=functions\n",  # a function that may be called: where data say that it stands
}


class Rendered(NamedTuple):
    """ids: (T,) int32. answer: (T,) bool, tokens that the assistant said."""

    ids: np.ndarray
    answer: np.ndarray


def check_messages(messages: Any) -> None:
    """ValueError says what is wrong with a conversation: a list of {"role": ..., "content": ...}."""
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError(f"messages: got {quoted(messages)}; allowed: a list of at least one message")
    if len(messages) > MOST_MESSAGES:
        raise ValueError(f"messages: got {len(messages):,}; allowed: at most {MOST_MESSAGES:,} of a conversation")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in tuple(HEADERS):
            role = message.get("role") if isinstance(message, dict) else message
            raise ValueError(f"message {number} has role {quoted(role)}; allowed are {', '.join(HEADERS)}")
        check_calls(number, message)
        text_of(message)


def check_calls(number: int, message: dict[str, Any]) -> None:
    """ValueError where a message calls tools in a form that our templates do not write: the call would be lost."""
    calls = message.get("calls") or ()
    if message.get("tool_calls") or not (isinstance(calls, list | tuple) and all(isinstance(c, Call) for c in calls)):
        name = "tool_calls" if message.get("tool_calls") else "calls"
        raise ValueError(
            f"message {number} has {name} {quoted(message[name])}; allowed are calls as text of its content, as the "
            "model writes them; nearest: mm01-serve, which takes tool_calls, or a .jinja template"
        )


def text_of(message: dict[str, Any]) -> str:
    """The text of a message, `<image>` where an image stands; its content is a text or a list of parts.

    Raises:
      ValueError: content of another form.
    """
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise ValueError(
            f"a message of {message['role']!r} has content {quoted(content)}; allowed are text or a list of parts"
        )
    return "".join(map(_part, parts))


def _part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "image":
        return IMAGE
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise ValueError(
        f'a part of a message is {quoted(part)}; allowed are {{"type": "text", "text": ...}}, {{"type": "image"}}'
    )


def count_images(messages: Sequence[dict[str, Any]]) -> int:
    """How many `<image>` marks a conversation has."""
    return sum(text_of(message).count(IMAGE) for message in messages)


def check_marks(messages: Sequence[dict[str, Any]], images: int) -> None:
    """ValueError where a conversation has more or fewer marks than there are images."""
    if (marks := count_images(messages)) != images:
        got = f"{counted(marks, f'{IMAGE} mark')} in the text and {counted(images, 'image')}"
        raise ValueError(f"{got}; allowed is one mark an image")


def render(
    messages: Sequence[dict[str, Any]],
    tokenizer: Tokenizer,
    image_tokens: Sequence[int] | None = (),
    *,
    tools: Sequence[Any] = (),
    template: str = "official",
    generate: bool = False,
) -> Rendered:
    """A conversation's tokens.

    Args:
      image_tokens: of each image in order, how many tokens it takes. None: marks are text, as to a model of text.
      tools: functions that the model may call, as JSON has them; they stand after all messages.
      template: "official", or "plain": the texts alone, one after another, END behind an answer.
      generate: end with the header of an answer that is to come.

    Raises:
      ValueError: more or fewer `<image>` marks than images; a tokenizer without the template's tokens.
    """
    waiting = None if image_tokens is None else list(image_tokens)
    if waiting is not None:
        check_marks(messages, len(waiting))
    begin, end = (np.array([tokenizer.special(name)], np.int32) for name in (BEGIN, END))
    newline = tokenizer.encode("\n")
    pieces: list[tuple[np.ndarray, bool]] = []
    for message in messages:
        said = message["role"] == "assistant"
        body = np.concatenate([_body(message, tokenizer, waiting), encode_calls(message, MINIMAX_01, tokenizer)])
        header = tokenizer.encode(HEADERS[message["role"]])
        if template == "plain":
            pieces += [(body, said), (end[: int(said)], said)]
        else:
            pieces += [(begin, False), (header, False), (body, said), (end, said), (newline, False)]
    for tool in tools:
        body = tokenizer.encode(HEADERS["tools"] + json.dumps(tool, ensure_ascii=False))
        pieces += [(begin, False), (body, False), (end, False), (newline, False)]
    if generate and template == "official":
        pieces += [(begin, False), (tokenizer.encode(HEADERS["assistant"]), False)]
    ids = np.concatenate([ids for ids, _ in pieces])
    return Rendered(ids, np.concatenate([np.full(len(ids), said) for ids, said in pieces]))


def _body(message: dict[str, Any], tokenizer: Tokenizer, waiting: list[int] | None) -> np.ndarray:
    """Ids of a message's text; takes what its marks stand for off the list of images that wait for one."""
    text = text_of(message)
    if waiting is None:
        return tokenizer.encode(text)
    return encode(text, tokenizer, [waiting.pop(0) for _ in range(text.count(IMAGE))])


def encode_calls(message: dict[str, Any], form: Form, tokenizer: Tokenizer) -> np.ndarray:
    """int32 ids of the calls of tools that a message has behind its text: `calls`, each a `tool_calls.Call`."""
    if not message.get("calls"):
        return np.zeros(0, np.int32)
    text = ("\n" if text_of(message) else "") + form.written(message["calls"])
    if form.open not in tokenizer.specials:
        return tokenizer.encode(text)
    before, after = text.split(form.open, 1)
    mark = np.array([tokenizer.special(form.open)], np.int32)
    return np.concatenate([tokenizer.encode(before), mark, tokenizer.encode(after)])


def encode(text: str, tokenizer: Tokenizer, image_tokens: Sequence[int] = ()) -> np.ndarray:
    """int32 ids of a text; the n-th `<image>` in it becomes `image_tokens[n]` tokens of that name."""
    pieces, left = [], list(image_tokens)
    for piece in re.split(f"({IMAGE})", text):
        if piece == IMAGE:
            pieces.append(np.full(left.pop(0), tokenizer.special(IMAGE), np.int32))
        elif piece:
            pieces.append(tokenizer.encode(piece))
    return np.concatenate([np.zeros(0, np.int32), *pieces])
