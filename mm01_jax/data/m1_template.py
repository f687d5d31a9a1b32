"""The template of MiniMax-M1, for a checkpoint that brings none: MiniMax-01's, with a document's begin in front.

    <begin_of_document><beginning_of_sentence>system ai_setting=assistant\\n{text}<end_of_sentence>\\n
    <beginning_of_sentence>user name=user\\n{text}<end_of_sentence>\\n
    <beginning_of_sentence>ai name=assistant\\n<think>\\n{thoughts}\\n</think>\\n{answer}<end_of_sentence>\\n

Thoughts are text of the answer and stay in the conversation. Tools stand before the first message that is no system's;
what they return is a message of role `tool`, its text one of a named part for each call.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from mm01_jax.data import conversations
from mm01_jax.data.conversations import BEGIN, END, Rendered
from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.data.tool_calls import MINIMAX_M1
from mm01_jax.files import quoted

DOCUMENT = "<begin_of_document>"
_TOOL = "tool"
_HEADERS = {role: conversations.HEADERS[role] for role in ("system", "user", "assistant")} | {
    _TOOL: "tool name=tools\n"
}
_TOOLS = """system tool_setting=tools
You are provided with these tools:
<tools>
{tools}
</tools>

If you need to call tools, please respond with <tool_calls></tool_calls> XML tags, and provide tool-name and \
json-object of arguments, following the format below:
<tool_calls>
{{"name": <tool-name>, "arguments": <args-json-object>}}
...
</tool_calls>"""


class M1:
    """With the methods of `templates.Template`."""

    name = "minimax-m1"
    thinks = True

    def ids(self, messages: Sequence[dict], tokenizer: Tokenizer, tools: Sequence[Any] | None = None) -> np.ndarray:
        """int32 ids of a conversation and the header of the answer to come; ValueError names a wrong message."""
        begin, header = _special(tokenizer, BEGIN), tokenizer.encode(_HEADERS["assistant"])
        return np.concatenate([self.render(messages, tokenizer, tools).ids, begin, header])

    def render(self, messages: Sequence[dict], tokenizer: Tokenizer, tools: Sequence[Any] | None = None) -> Rendered:
        """A conversation's tokens, those that the assistant said marked."""
        _check(messages)
        first = next((n for n, message in enumerate(messages) if message["role"] != "system"), len(messages))
        pieces = [(_special(tokenizer, DOCUMENT), False)]
        for message in messages[:first]:
            pieces += _message(message["role"], message, tokenizer)
        if tools:
            text = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
            pieces += _turn(_TOOLS.format(tools=text), "", False, tokenizer)
        for message in messages[first:]:
            pieces += _message(message["role"], message, tokenizer)
        said = [np.full(len(ids), is_answer) for ids, is_answer in pieces]
        return Rendered(np.concatenate([ids for ids, _ in pieces]), np.concatenate(said))

    def stop(self, tokenizer: Tokenizer) -> int:
        """Of a tokenizer that has all that the template needs; ValueError names what it has not."""
        for name in (DOCUMENT, BEGIN):
            tokenizer.special(name)
        return tokenizer.special(END)


def _check(messages: Sequence[dict]) -> None:
    if not messages:
        raise ValueError(f"messages: got {quoted(messages)}; allowed: a list of at least one message")
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else message
        if role not in _HEADERS:
            raise ValueError(f"message {number} has role {role!r}; allowed are {', '.join(_HEADERS)}")
        conversations.check_calls(number, message)


def _message(role: str, message: dict, tokenizer: Tokenizer) -> list[tuple[np.ndarray, bool]]:
    text = _returned(message) if role == _TOOL else conversations.text_of(message)
    return _turn(
        _HEADERS[role], text, role == "assistant", tokenizer, conversations.encode_calls(message, MINIMAX_M1, tokenizer)
    )


def _returned(message: dict) -> str:
    """What tools returned: a text, or a list of parts with the tools' names."""
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = conversations.text_of(message | {"content": parts})  # refuses other forms
    if not any("name" in part for part in parts):
        return f"tool result: {text}\n"
    return "".join(f"tool name: {part.get('name', '')}\ntool result: {part['text']}\n" for part in parts)


def _turn(header: str, text: str, said: bool, tokenizer: Tokenizer, calls=()) -> list[tuple[np.ndarray, bool]]:
    head, body, newline = (tokenizer.encode(part) for part in (header, text, "\n"))
    begin, end = (_special(tokenizer, name) for name in (BEGIN, END))
    more = [(calls, said)] if len(calls) else []
    return [(begin, False), (head, False), (body, said), *more, (end, said), (newline, False)]


def _special(tokenizer: Tokenizer, name: str) -> np.ndarray:
    return np.array([tokenizer.special(name)], np.int32)
