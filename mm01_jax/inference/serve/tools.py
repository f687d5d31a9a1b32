"""Tools of a request: what may be said of them, which may be called, and what an answer may therefore hold."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mm01_jax.data.tool_calls import Call
from mm01_jax.inference.serve import fields, formats, unused
from mm01_jax.inference.serve.errors import Refused, wrong
from mm01_jax.inference.serve.fields import Field
from mm01_jax.inference.serve.parser import Reading
from mm01_jax.inference.serve.service import Service

MOST_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def definitions(name: str, value: Any) -> list[dict[str, Any]]:
    """Tools as functions: {"name", "description", "parameters"} of each, names once."""
    rule = fields.by_type({"function": _definition})
    return _once(fields.list_of(rule, 0, MOST_TOOLS)(name, value), name + "[{}].function.name")


def _once(found: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    places: dict[str, int] = {}
    for place, function in enumerate(found):
        if places.setdefault(function["name"], place) != place:
            raise Refused(f"{name.format(place)}: {function['name']!r} occurs twice", name.format(place))
    return found


def _definition(name: str, value: Any) -> dict[str, Any]:
    known = {"type": Field(fields.one_of("function"), required=True), "function": Field(function, required=True)}
    return fields.read(value, known, name)["function"]


def function(name: str, value: Any, **beside: Field) -> dict[str, Any]:
    """{"name", "description", "parameters", "strict"}, what is not there aside, and what stands beside these."""
    known = {
        "name": Field(tool_name, required=True),
        "description": Field(fields.text),
        "parameters": Field(formats.parameters),
        "strict": Field(fields.switch),
    }
    found = fields.read(value, beside | known, name)
    return {key: found[key] for key in known if found[key] is not None}


def flat_definitions(name: str, value: Any) -> list[dict[str, Any]]:
    """As `definitions`, of tools as /v1/responses has them: a function's fields beside its type."""
    rule = fields.by_type({"function": functools.partial(function, type=Field(fields.text))})
    return _once(fields.list_of(rule, 0, MOST_TOOLS)(name, value), name + "[{}].name")


def flat(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as /v1/responses says it."""
    return {"type": "function", "description": None, "parameters": None, "strict": None} | dict(tool)


def tool_name(name: str, value: Any) -> str:
    if not _NAME.fullmatch(fields.text(name, value)):
        raise wrong(name, value, "1 to 64 letters, digits, _, - and .")
    return value


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
    found = fields.read(value, unused.OF_A_CALL | known, name)
    return Call(found["name"], found["arguments"])


def arguments(name: str, value: Any) -> str:
    """JSON of an object."""
    try:
        found = fields.parsed(fields.text(name, value).encode(), name)
    except ValueError as error:
        raise Refused(f"{name}: {error}", name) from None
    if not isinstance(found, dict):
        raise wrong(name, found, "JSON of an object")
    return value


class Offer(NamedTuple):
    """tools: that an answer may call. must: it has to call one. parallel: it may call several. places: of all tools of
    the request, by their names.
    """

    tools: list[dict[str, Any]]
    must: bool
    parallel: bool
    places: Mapping[str, int] = {}

    @property
    def is_strict(self) -> bool:
        """Whether arguments of a call, where there is one, have to follow its tool's schema."""
        return any(tool.get("strict") for tool in self.tools)


def offer(values: Mapping[str, Any], service: Service) -> Offer:
    """What `tools` and `tool_choice` mean; refuses them where the model has no form for calls."""
    found, chosen = values["tools"], values["tool_choice"]
    places = {tool["name"]: place for place, tool in enumerate(found)}
    if not found and (chosen.must or chosen.names):
        raise Refused("tool_choice: allowed with tools alone", "tool_choice")
    if not found or chosen.names == []:
        return Offer([], False, False)
    if service.form is None:
        raise Refused("tools: this model's template has no form for calls of tools that is known here", "tools")
    if chosen.names is not None:
        for name in chosen.names:
            if name not in places:
                raise wrong("tool_choice", name, f"a tool of the request: {', '.join(places)}")
        found = [tool for tool in found if tool["name"] in chosen.names]
    return Offer(found, chosen.must, values["parallel_tool_calls"] and not chosen.one, places)


def reading(offer: Offer, prompt: Sequence[int], service: Service) -> Reading:
    """What an answer to a prompt may hold."""
    begun = service.thinks and service.has_begun_to_think(prompt)
    if not offer.tools:
        return Reading(service.thinks, begun)
    names = frozenset(tool["name"] for tool in offer.tools)
    return Reading(service.thinks, begun, service.form, names, None if offer.parallel else 1)


def grammar(
    offer: Offer,
    form: dict[str, str] | None,
    reading: Reading,
    service: Service,
    names: tuple[str, str] = ("response_format", "tools[{}].function.parameters"),
) -> str | None:
    """The grammar that an answer has to follow; None where it may say anything.

    Args:
      form: of its text (`formats.response_format`). names: of the fields that have it, and a tool's schema.

    Raises:
      Refused: there is no such grammar.
    """
    rules, ways, specials = {}, [], service.tokenizer.specials
    if offer.tools and (offer.must or form):
        rules |= formats.calls_of(offer.tools, service.form, offer.parallel, specials)
        ways.append("calls")
    elif offer.is_strict:
        rules |= formats.text_and_calls_of(offer.tools, service.form, offer.parallel, specials)
        ways += ["SAID", "text_and_calls"]
    if form and not offer.must:
        rules |= form
        ways.append("answer")
    if not ways:
        return None
    thoughts = formats.thoughts_of(reading.begun, specials) if reading.thinks else {}
    text = formats.grammar(" | ".join(ways), rules, thoughts, reading.begun)
    if form and offer.must:  # there is no text to have that form, but it may be none
        _check(formats.grammar("answer", form, {}, False), names[0], service)
    try:
        service.grammars.check(text)
    except ValueError:
        for tool in offer.tools:
            _check(f"start: {formats.arguments(tool)}", names[1].format(offer.places[tool["name"]]), service)
        _check(text, names[0] if form else "tools", service)
    return text


def _check(text: str, name: str, service: Service) -> None:
    try:
        service.grammars.check(text)
    except ValueError as error:
        raise Refused(f"{name}: {error}", name) from None
