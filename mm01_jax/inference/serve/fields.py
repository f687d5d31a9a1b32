"""What the fields of a request may be: a table of names and rules; whatever breaks one is refused by its name.

A rule is a function (name, value) -> value. A field that is null or absent has its default, also one of another name.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mm01_jax.config.fields import nearest_name
from mm01_jax.files import parse_json
from mm01_jax.inference.serve.errors import Refused, wrong

Rule = Callable[[str, Any], Any]
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # of a pair of surrogates, as JSON writes them; UTF-8 has none
_ID = re.compile("0|[1-9][0-9]{0,8}")  # of a token: each has one name
_NAME = 100  # characters of a client's own name of a field, in ours


class Field(NamedTuple):
    """rule: of its value. default: without one. required: there is none without."""

    rule: Rule
    default: Any = None
    required: bool = False


def parsed(raw: bytes, where: str = "") -> Any:
    """What JSON says: its numbers are numbers, and its texts have a form in UTF-8, at any depth and in any field.

    Args:
      where: the name of the field that it stands in, "" of the whole body.

    Raises:
      Refused: names the field. ValueError: there is none to name, as it is no JSON.
    """
    odd: list[ValueError] = []

    def guard(read: Callable[[str], Any]) -> Callable[[str], Any]:
        def number(text: str) -> Any:
            try:
                return read(text)
            except ValueError as error:
                if not odd:  # of a million of them the first is said
                    odd.append(error)
                return odd[0]

        return number

    value = parse_json(raw, guard=guard)
    if odd or _HALF.search(raw):  # to look at all of a long body takes longer than to read it
        _check_said(where, value)
    return value


def _check_said(name: str, value: Any) -> None:
    if isinstance(value, ValueError):
        raise Refused(f"{name or 'the body'}: {value}", name or None)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Refused(f"{name}: character {error.start} is half a pair of surrogates", name or None) from None
    elif isinstance(value, dict):
        for key, inner in value.items():
            place = f"{name}.{key[:_NAME]}" if name else key[:_NAME]
            _check_said(place, key)
            _check_said(place, inner)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            _check_said(f"{name}[{place}]", inner)


def read(body: Any, fields: Mapping[str, Field], where: str = "") -> dict[str, Any]:
    """Every field's value.

    Args:
      where: the name of the object that has these fields, "" of the whole body.

    Raises:
      Refused: no object, a field that there is none of, one that is missing, a value that may not be.
    """
    if not isinstance(body, dict):
        raise wrong(where, body, "an object") if where else Refused("the body is no JSON object")
    inside = f"{where}." if where else ""
    for name in body:
        if name in fields or body[name] is None:  # clients send back what they were sent, and what else they know
            continue
        near = nearest_name(name, fields)
        hint = f"; nearest: {near}" if near else ""
        raise Refused(f"{inside}{name[:_NAME]}: no such field here{hint}", f"{inside}{name[:_NAME]}")
    found = {}
    for name, field in fields.items():
        value = body.get(name)
        if value is None and field.required:
            raise Refused(f"{inside}{name}: missing", f"{inside}{name}", code="missing_required_parameter")
        found[name] = field.default if value is None else field.rule(inside + name, value)
    return found


def switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise wrong(name, value, "true or false")
    return value


def number(least: float, most: float) -> Rule:
    def rule(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise wrong(name, value, f"a number from {least:g} to {most:g}")
        return float(value)

    return rule


def whole(least: int, most: int) -> Rule:
    def rule(name: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise wrong(name, value, f"a whole number from {least} to {most}")
        return value

    return rule


def anything(name: str, value: Any) -> Any:
    return value


def text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise wrong(name, value, "a text")
    return value


def labels(name: str, value: Any) -> dict[str, str]:
    """Up to 16 texts by names."""
    if not isinstance(value, dict) or len(value) > 16:
        raise wrong(name, value, "an object of up to 16 texts")
    return {key: text(f"{name}.{key[:_NAME]}", said) for key, said in value.items()}


def object_of(fields: Mapping[str, Field]) -> Rule:
    return lambda name, value: read(value, fields, name)


def by_type(rules: Mapping[str, Rule], unsaid: str | None = None) -> Rule:
    """An object whose `type` says by which rule to read it: looked at before other fields, which belong to that type.

    unsaid: the type of one that has none; None: there is none without.
    """

    def rule(name: str, value: Any) -> Any:
        if not isinstance(value, dict):
            raise wrong(name, value, "an object")
        kind = value.get("type")
        if kind is None and unsaid is None:
            raise Refused(f"{name}.type: missing", f"{name}.type", code="missing_required_parameter")
        return rules[one_of(*rules)(f"{name}.type", unsaid if kind is None else kind)](name, value)

    return rule


def one_of(*allowed: Any) -> Rule:
    """One of these values; of none, null alone. Others are known to OpenAI's API and not to this server."""
    listed = ", ".join(map(str, allowed)).replace("True", "true").replace("False", "false") or "null"

    def rule(name: str, value: Any) -> Any:
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise wrong(name, value, listed)
        return value

    return rule


def list_of(rule: Rule, least: int, most: int) -> Rule:
    def every(name: str, value: Any) -> list:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise wrong(name, value, f"a list of {least} to {most:,}")
        return [rule(f"{name}[{place}]", one) for place, one in enumerate(value)]

    return every


def ids(vocab_size: int, least: int = 1) -> Rule:
    """So many token ids at least."""

    def rule(name: str, value: Any) -> list[int]:
        if not isinstance(value, list) or len(value) < least:
            raise wrong(name, value, "token ids" + ", at least one" * (least > 0))
        for place, one in enumerate(value):
            if type(one) is not int or not 0 <= one < vocab_size:
                raise wrong(f"{name}[{place}]", one, f"a token id, 0 to {vocab_size - 1}")
        return value

    return rule


def stop(name: str, value: Any) -> list[str]:
    """A text that ends an answer, or up to 16 of them."""

    def one(name: str, value: Any) -> str:
        if text(name, value) == "" or len(value) > 1000:
            raise wrong(name, value, "a text of 1 to 1,000 characters")
        return value

    return [one(name, value)] if isinstance(value, str) else list_of(one, 0, 16)(name, value)


def logit_bias(vocab_size: int, most: int) -> Rule:
    """{"id": bias}, at most `most` of them."""

    def rule(name: str, value: Any) -> dict[int, float]:
        if not isinstance(value, dict) or len(value) > most:
            raise wrong(name, value, f"an object of up to {most} token ids")
        for key in value:
            if not _ID.fullmatch(key) or int(key) >= vocab_size:
                raise wrong(f"{name}.{key[:40]}", key, f"a token id, 0 to {vocab_size - 1}")
        return {int(key): number(-100, 100)(f"{name}.{key}", bias) for key, bias in value.items()}

    return rule
