"""What /v1/responses is asked, its `input`, as messages of a conversation."""

import functools
from collections.abc import Callable
from typing import Any

from mm01_jax.data.conversations import MOST_MESSAGES
from mm01_jax.data.tool_calls import Call
from mm01_jax.inference.serve import fields, tools, unused
from mm01_jax.inference.serve.errors import Refused, wrong
from mm01_jax.inference.serve.fields import Field
from mm01_jax.inference.serve.service import Service

_ROLES = ("user", "assistant", "system", "developer")
_STATUS = Field(fields.one_of("in_progress", "completed", "incomplete"))


def messages_of(value: Any, service: Service) -> list[dict[str, Any]]:
    """A text, or messages, calls of tools, what came of them and thoughts; in `chat.messages`' form.

    Raises:
      Refused: names the field.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": fields.text("input", value)}]
    if not isinstance(value, list) or not value:
        raise wrong("input", value, "a text, or a list of at least one item")
    found: list[dict[str, Any]] = []
    called: set[str] = set()
    for place, item in enumerate(fields.list_of(functools.partial(_item, service), 1, MOST_MESSAGES)("input", value)):
        if item.get("tool_call_id") is not None and item["tool_call_id"] not in called:
            name = f"input[{place}].call_id"
            raise Refused(f"{name}: no call of that id stands before", name)
        called |= {one["id"] for one in item.get("tool_calls", ())}
        _add(found, item)
    return found


def _add(found: list[dict[str, Any]], item: dict[str, Any]) -> None:
    """Thoughts, text and calls that follow each other are one message of the assistant."""
    last = found[-1] if found and found[-1]["role"] == "assistant" == item["role"] else {}
    if last and item.get("tool_calls"):
        last["tool_calls"] = [*last.get("tool_calls", ()), *item["tool_calls"]]
    elif last and "content" in item and last.keys() == {"role", "reasoning_content"}:
        last["content"] = item["content"]
    else:
        found.append(item)


def _item(service: Service, name: str, value: Any) -> dict[str, Any]:
    kinds = {
        "message": functools.partial(_message, service),
        "function_call": _call,
        "function_call_output": _result,
        "reasoning": _reasoning,
    }
    return fields.by_type(kinds, "message")(name, value)


def _read(where: str, value: Any, **own: Field) -> dict[str, Any]:
    shared = {"type": Field(fields.text), "id": Field(fields.text), "status": _STATUS}
    return fields.read(value, shared | own, where)


def _message(service: Service, name: str, value: Any) -> dict[str, Any]:
    sees = service.images is not None and value.get("role") == "user"
    found = _read(
        name,
        value,
        role=Field(fields.one_of(*_ROLES), required=True),
        content=Field(functools.partial(_shown, service.images.flat_part) if sees else _content, required=True),
        phase=Field(fields.one_of("commentary", "final_answer")),
    )
    return {"role": found["role"], "content": found["content"]}


def _call(name: str, value: Any) -> dict[str, Any]:
    needed = {"call_id": fields.text, "name": tools.tool_name, "arguments": tools.arguments}
    found = _read(name, value, **{key: Field(rule, required=True) for key, rule in needed.items()}, **unused.OF_A_CALL)
    call = {"id": found["call_id"], "call": Call(found["name"], found["arguments"])}
    return {"role": "assistant", "tool_calls": [call]}


def _result(name: str, value: Any) -> dict[str, Any]:
    found = _read(name, value, call_id=Field(fields.text, required=True), output=Field(_content, required=True))
    return {"role": "tool", "tool_call_id": found["call_id"], "content": found["output"]}


def _reasoning(name: str, value: Any) -> dict[str, Any]:
    found = _read(
        name,
        value,
        content=Field(_content, ""),
        summary=Field(_content, ""),
        encrypted_content=Field(fields.one_of()),
    )
    said = found["content"] or found["summary"]
    return {"role": "assistant", "reasoning_content": said}


def _content(name: str, value: Any) -> str:
    """A text, or parts of it as one."""
    if isinstance(value, str):
        return fields.text(name, value)
    if not isinstance(value, list):
        raise wrong(name, value, "a text, or a list of parts")
    return "".join(fields.list_of(_part, 0, MOST_MESSAGES)(name, value))


def _shown(image: Callable[[str, Any], dict], name: str, value: Any) -> str | list[dict[str, Any]]:
    """As `_content`, with images among its parts, which then stay parts; image: the rule of one."""
    if not isinstance(value, list):
        return _content(name, value)

    def part(name: str, value: Any) -> dict[str, Any]:
        is_image = isinstance(value, dict) and value.get("type") == "input_image"
        return image(name, value) if is_image else {"type": "text", "text": _part(name, value)}

    parts = fields.list_of(part, 0, MOST_MESSAGES)(name, value)
    has_images = any("image" in part for part in parts)
    return parts if has_images else "".join(part["text"] for part in parts)


def _part(name: str, value: Any) -> str:
    kinds = ("input_text", "output_text", "reasoning_text", "summary_text", "text")
    if isinstance(value, dict) and "type" in value:
        fields.one_of(*kinds)(f"{name}.type", value["type"])  # before other fields, which belong to that type
    known = {
        "type": Field(fields.one_of(*kinds), required=True),
        "text": Field(fields.text, required=True),
        "annotations": Field(fields.list_of(fields.one_of(), 0, 0)),
        "logprobs": Field(fields.list_of(fields.one_of(), 0, 0)),
    }
    return fields.read(value, unused.OF_A_PART | unused.OF_AN_ANSWER | known, name)["text"]
