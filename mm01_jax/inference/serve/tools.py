"""Tools of a request: what may be said of them, which may be called, and what an answer may therefore hold."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mm01_jax.data.tool_calls import Call
from mm01_jax.files import parse_json
from mm01_jax.inference.serve import fields
from mm01_jax.inference.serve.errors import Refused, wrong
from mm01_jax.inference.serve.fields import Field
from mm01_jax.inference.serve.parser import Reading
from mm01_jax.inference.serve.service import Service

MOST_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
CHOICES = ("none", "auto")


def definitions(name: str, value: Any) -> list[dict[str, Any]]:
    """Tools as functions: {"name", "description", "parameters"} of each, names once."""
    found = fields.list_of(_definition, 0, MOST_TOOLS)(name, value)
    for place, function in enumerate(found):
        if function["name"] in [other["name"] for other in found[:place]]:
            raise Refused(f"{name}[{place}].function.name: {function['name']!r} occurs twice", f"{name}[{place}]")
    return found


def _definition(name: str, value: Any) -> dict[str, Any]:
    known = {"type": Field(fields.one_of("function"), required=True), "function": Field(function, required=True)}
    return fields.read(value, known, name)["function"]


def function(name: str, value: Any) -> dict[str, Any]:
    """{"name", "description", "parameters"}, what is not there aside."""
    known = {
        "name": Field(tool_name, required=True),
        "description": Field(fields.text),
        "parameters": Field(schema),
        "strict": Field(fields.switch),
    }
    found = fields.read(value, known, name)
    return {key: found[key] for key in ("name", "description", "parameters") if found[key] is not None}


def tool_name(name: str, value: Any) -> str:
    if not _NAME.fullmatch(fields.text(name, value)):
        raise wrong(name, value, "1 to 64 letters, digits, _, - and .")
    return value


def schema(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(name, value, "a JSON schema, an object")
    return value


def choice(name: str, value: Any) -> str:
    """One of CHOICES."""
    return fields.one_of(*CHOICES)(name, value)


def calls(name: str, value: Any) -> list[dict[str, Any]]:
    """Calls that an answer made: {"id", "call"} of each."""
    return fields.list_of(_call, 1, MOST_TOOLS)(name, value)


def _call(name: str, value: Any) -> dict[str, Any]:
    known = {
        "id": Field(fields.text, required=True),
        "type": Field(fields.one_of("function"), "function"),
        "function": Field(_called, required=True),
        "index": Field(fields.whole(0, MOST_TOOLS)),  # of one who sends back what was streamed
    }
    found = fields.read(value, known, name)
    return {"id": found["id"], "call": found["function"]}


def _called(name: str, value: Any) -> Call:
    known = {"name": Field(tool_name, required=True), "arguments": Field(arguments, required=True)}
    return Call(**fields.read(value, known, name))


def arguments(name: str, value: Any) -> str:
    """JSON of an object."""
    try:
        found = parse_json(fields.text(name, value).encode())
    except ValueError as error:
        raise Refused(f"{name}: {error}", name) from None
    if not isinstance(found, dict):
        raise wrong(name, found, "JSON of an object")
    return value


def offered(values: Mapping[str, Any], service: Service) -> list[dict[str, Any]]:
    """The tools that an answer may call; refuses them where the model has no form for calls."""
    if not values["tools"]:
        if values["tool_choice"] not in (None, "none", "auto"):
            raise Refused("tool_choice: allowed with tools alone", "tool_choice")
        return []
    if values["tool_choice"] == "none":
        return []
    if service.form is None:
        raise Refused("tools: this model's template has no form for calls of tools that is known here", "tools")
    return values["tools"]


def reading(tools: Sequence[Mapping[str, Any]], is_parallel: bool, prompt: Sequence[int], service: Service) -> Reading:
    """What an answer to a prompt may hold."""
    begun = service.thinks and service.has_begun_to_think(prompt)
    if not tools:
        return Reading(service.thinks, begun)
    names = frozenset(tool["name"] for tool in tools)
    return Reading(service.thinks, begun, service.form, names, None if is_parallel else 1)
