"""`tool_choice`: which tools of a request an answer may call, and whether it has to."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mm01_jax.inference.serve import fields
from mm01_jax.inference.serve.fields import Field, Rule
from mm01_jax.inference.serve.tools import MOST_TOOLS, tool_name


class Chosen(NamedTuple):
    """names: of the tools that may be called; None: of all. must: one has to be. one: and no second one."""

    names: list[str] | None = None
    must: bool = False
    one: bool = False


AUTO = Chosen()
_WORDS = {"none": Chosen([]), "auto": AUTO, "required": Chosen(must=True)}
_TYPE, _NAMED = {"type": Field(fields.text)}, {"name": Field(tool_name, required=True)}


def choice(name: str, value: Any) -> Chosen:
    """As /v1/chat/completions has it: what belongs to a type in an object of its own."""

    def one(name: str, value: Any) -> str:
        return _inside("function", _NAMED, name, value)["name"]

    def some(name: str, value: Any) -> dict[str, Any]:
        return _inside("allowed_tools", _allowed(one), name, value)

    return _chosen(name, value, one, some)


def flat_choice(name: str, value: Any) -> Chosen:
    """As /v1/responses has it: what belongs to a type beside it."""

    def one(name: str, value: Any) -> str:
        return fields.read(value, _TYPE | _NAMED, name)["name"]

    def some(name: str, value: Any) -> dict[str, Any]:
        return fields.read(value, _TYPE | _allowed(one), name)

    return _chosen(name, value, one, some)


def _inside(key: str, known: Mapping[str, Field], name: str, value: Any) -> dict[str, Any]:
    return fields.read(value, _TYPE | {key: Field(fields.object_of(known), required=True)}, name)[key]


def _allowed(one: Rule) -> dict[str, Field]:
    tools = fields.list_of(fields.by_type({"function": one}), 1, MOST_TOOLS)
    return {"mode": Field(fields.one_of("auto", "required"), required=True), "tools": Field(tools, required=True)}


def _chosen(name: str, value: Any, one: Rule, some: Rule) -> Chosen:
    if not isinstance(value, dict):
        return _WORDS[fields.one_of(*_WORDS)(name, value)]

    def allowed(name: str, value: Any) -> Chosen:
        found = some(name, value)
        return Chosen(found["tools"], must=found["mode"] == "required")

    only = {"function": lambda name, value: Chosen([one(name, value)], must=True, one=True)}
    return fields.by_type(only | {"allowed_tools": allowed})(name, value)
