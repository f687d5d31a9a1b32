"""The fields of a config by dotted key: their declared types, their values, the nearest right name.

A key is the path of a field, `train.steps` or `mesh.rules.batch`. Sections are dataclasses, everything else is a leaf.
"""

import dataclasses
import functools
import math
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from mm01_jax.config import Config, Problem, VisionConfig
from mm01_jax.values import similar


@functools.cache
def field_types(section: type) -> dict[str, Any]:
    """Name -> annotation of one section's fields, in order."""
    hints = typing.get_type_hints(section)
    return {field.name: hints[field.name] for field in dataclasses.fields(section)}


@functools.cache
def leaf_types(section: type = Config, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> annotation of every leaf below a section."""
    leaves = {}
    for name, annotation in field_types(section).items():
        if dataclasses.is_dataclass(annotation):
            leaves |= leaf_types(annotation, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = annotation
    return leaves


def values(config: Config) -> dict[str, Any]:
    """Dotted key -> value of every leaf."""
    return {key: get(config, key) for key in leaf_types()}


def get(config: Config, key: str) -> Any:
    """The value at a dotted key."""
    return functools.reduce(getattr, key.split("."), config)


def replace(config: Any, key: str, value: Any) -> Any:
    """A copy of the config with another value at a dotted key."""
    name, _, rest = key.partition(".")
    return dataclasses.replace(config, **{name: replace(getattr(config, name), rest, value) if rest else value})


def default(key: str) -> Any:
    """The default of the leaf at a dotted key, `dataclasses.MISSING` where it must be given."""
    section, name = _section(key)
    return {field.name: field.default for field in dataclasses.fields(section)}[name]


def _section(key: str) -> tuple[type, str]:
    """The section that the last name of a dotted key is in, which may be optional as `VisionConfig | None` is."""
    *sections, name = key.split(".")
    section = Config
    for step in sections:
        declared = field_types(section)[step]
        section = next(kind for kind in (declared, *typing.get_args(declared)) if dataclasses.is_dataclass(kind))
    return section, name


def differences(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) of every leaf that differs, in the order of the fields."""
    before, after = values(old), values(new)
    return [(key, before[key], after[key]) for key in before if before[key] != after[key]]


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value has the declared type. A whole number is a number; True is neither."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is types.UnionType:
        return any(fits(value, choice) for choice in arguments)
    if origin is tuple:
        return type(value) is tuple and _items_fit(value, arguments)
    if annotation is float:
        return type(value) is int or isinstance(value, float)
    if annotation is type(None):
        return value is None
    return type(value) is annotation


def _items_fit(items: tuple, arguments: tuple) -> bool:
    if arguments[-1] is Ellipsis:
        return all(fits(item, arguments[0]) for item in items)
    return len(items) == len(arguments) and all(map(fits, items, arguments))


def canonical(value: Any, annotation: Any) -> Any:
    """A value as its declared type writes it: lists become tuples, a whole number in a field of numbers a float."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is types.UnionType and value is not None:
        return canonical(value, next(choice for choice in arguments if choice is not type(None)))
    if origin is tuple and isinstance(value, list | tuple):
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        # A tuple of the wrong length stays as it is, for `fits` to refuse.
        return tuple(map(canonical, value, kinds)) if len(kinds) == len(value) else tuple(value)
    if annotation is float and type(value) is int and abs(value) < sys.float_info.max:
        return float(value)
    return value


def describe(annotation: Any) -> str:
    """A declared type in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is types.UnionType:
        return " or ".join(map(describe, arguments))
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a tuple of ({describe(arguments[0])})"
    if origin is tuple:
        return f"a tuple ({', '.join(map(describe, arguments))})"
    if dataclasses.is_dataclass(annotation):
        return f"a {annotation.__name__}"
    return {int: "a whole number", float: "a number", str: "text", bool: "True or False", type(None): "None"}[
        annotation
    ]


def type_problems(section: Any, annotation: type = Config, prefix: str = "") -> Iterator[Problem]:
    """Every leaf and section whose value is not of its declared type."""
    for name, declared in field_types(annotation).items():
        key, value = prefix + name, getattr(section, name)
        if not dataclasses.is_dataclass(declared):
            if not fits(value, declared):
                yield Problem(
                    key=key, got=value, allowed=describe(declared), nearest=nearest_value(key, value, declared)
                )
        elif type(value) is declared:
            yield from type_problems(value, declared, key + ".")
        else:
            yield Problem(key=key, got=value, allowed=describe(declared), nearest=f"{declared.__name__}(...)")


def nearest_value(key: str, value: Any, annotation: Any) -> str:
    """The nearest value of the declared type: the like-named choice, the number that was meant, else the default."""
    listed = tuple(word.strip() for word in value.split(",")) if isinstance(value, str) else ()
    for as_tuple in (listed, (value,), tuple(value) if isinstance(value, list) else ()):
        if as_tuple and fits(as_tuple, annotation):
            return repr(as_tuple)
    choices = [choice for choice in _choices(annotation) if isinstance(choice, str)]
    if choices:
        words = value if isinstance(value, tuple | list) else (value,)
        near = (nearest_name(word, choices) if isinstance(word, str) else None for word in words)
        names = tuple(name or choices[0] for name in near)
        return repr(names) if typing.get_origin(annotation) is tuple else repr(names[0] if names else choices[0])
    if {int, float} & {annotation, *typing.get_args(annotation)} and isinstance(value, str | int | float):
        number = _number(value, whole=int in (annotation, *typing.get_args(annotation)))
        if number is not None:
            return repr(number)
    return default_text(key)


def default_text(key: str) -> str:
    """The default at a dotted key as text; for a leaf that must be given, the plainest value of its type."""
    fallback = default(key)
    if fallback is not dataclasses.MISSING:
        return repr(fallback)
    section, name = _section(key)
    shipped = "vl_01" if section is VisionConfig else "tiny"
    return {int: "1", str: "'my_run'"}.get(field_types(section)[name], f"see configs/{shipped}.py")


def _choices(annotation: Any) -> tuple:
    if typing.get_origin(annotation) is Literal:
        return typing.get_args(annotation)
    return sum((_choices(argument) for argument in typing.get_args(annotation)), ())


def _number(value: str | int | float, *, whole: bool) -> int | float | None:
    try:
        number = round(float(value)) if whole else float(value)
        return number if math.isfinite(number) and not (whole and abs(number) >= 2**31) else None
    except (ValueError, OverflowError):
        return None


def nearest_name(name: str, names: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The most similar of some names, None where nothing resembles."""
    by_lower = {candidate.lower(): candidate for candidate in names}
    close = similar(name.lower(), by_lower, n=3, cutoff=cutoff)
    close.sort(key=lambda other: sorted(other) != sorted(name.lower()))  # swapped letters are the commonest slip
    return by_lower[close[0]] if close else None


def nearest_key(key: str) -> str | None:
    """What a mistyped dotted key most likely means: a sibling, a namesake elsewhere, a similar name, a similar key."""
    section, _, name = key.rpartition(".")
    keys = list(leaf_types())
    keys += sorted({leaf.rpartition(".")[0] for leaf in keys if "." in leaf})
    siblings = {known.rpartition(".")[2]: known for known in keys if known.rpartition(".")[0] == section}
    namesakes = [known for known in keys if known.rpartition(".")[2] == name]
    if close := nearest_name(name, siblings, cutoff=0.75 if namesakes else 0.5):
        return siblings[close]
    if namesakes:
        return nearest_name(key, namesakes, cutoff=0.0)
    by_name = {known.rpartition(".")[2]: known for known in reversed(keys)}
    return by_name.get(nearest_name(name, by_name, cutoff=0.6)) or nearest_name(key, keys)
