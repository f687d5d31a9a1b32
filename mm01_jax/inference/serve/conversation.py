"""Messages of OpenAI's API as each template takes them: whose they are, and where calls, results and thoughts stand."""

import json
from collections.abc import Sequence
from typing import Any

from mm01_jax.data.m1_template import M1
from mm01_jax.data.templates import Released, Template
from mm01_jax.files import parse_json
from mm01_jax.inference.serve.errors import Refused
from mm01_jax.inference.thoughts import CLOSE, OPEN

Message = dict[str, Any]


def for_template(messages: Sequence[Message], template: Template | Released | M1) -> list[Message]:
    """
    Args:
      messages: as `chat.messages` gives them: of an assistant `tool_calls`, [{"id", "call"}], and `reasoning_content`;
        of a tool `tool_call_id`.

    Raises:
      Refused: a tool's answer to a call that nobody made.
    """
    names: dict[str, str] = {}
    found = []
    for place, message in enumerate(messages):
        role = {"developer": "system"}.get(message["role"], message["role"])
        message = {key: value for key, value in message.items() if value is not None} | {"role": role}
        names |= {one["id"]: one["call"].name for one in message.get("tool_calls", ())}
        if role == "tool":
            if (id := message["tool_call_id"]) not in names:
                where = f"messages[{place}].tool_call_id"
                raise Refused(f"{where}: no call of that id stands before", where)
            message["name"] = names[id]
        found.append(message)
    form = {"minimax-01": _for_01, "minimax-m1": _for_m1}.get(template.name, _for_others)
    return [form(message) for message in found]


def tools_for(tools: Sequence[dict[str, Any]], template: Template | Released | M1) -> list[dict[str, Any]] | None:
    """Definitions as a template writes them: MiniMax's the function alone, others' as OpenAI's API has it. Whether a
    tool is strict is no matter of its text."""
    if not tools:
        return None
    tools = [{key: value for key, value in tool.items() if key != "strict"} for tool in tools]
    return tools if isinstance(template, Released | M1) else [{"type": "function", "function": t} for t in tools]


def _for_01(message: Message) -> Message:
    if message["role"] == "tool":
        result = {"name": message["name"], "response": _text(message)}
        return {"role": "function", "content": json.dumps(result, ensure_ascii=False)}
    return _plain(message)


def _for_m1(message: Message) -> Message:
    if message["role"] == "tool":
        return {"role": "tool", "content": [{"type": "text", "text": _text(message), "name": message["name"]}]}
    plain = _plain(message)
    if thoughts := message.get("reasoning_content"):
        plain["content"] = f"{OPEN}\n{thoughts}\n{CLOSE}\n{_text(message)}"
    return plain


def _plain(message: Message) -> Message:
    calls = [one["call"] for one in message.get("tool_calls", ())]
    return {"role": message["role"], "content": message.get("content", "")} | ({"calls": calls} if calls else {})


def _for_others(message: Message) -> Message:
    """As templates of the hub have it: arguments are an object."""
    message = {"content": ""} | message
    if "tool_calls" in message:
        message["tool_calls"] = [
            {
                "id": one["id"],
                "type": "function",
                "function": {"name": one["call"].name, "arguments": parse_json(one["call"].arguments.encode())},
            }
            for one in message["tool_calls"]
        ]
    return message


def _text(message: Message) -> str:
    content = message.get("content", "")
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
