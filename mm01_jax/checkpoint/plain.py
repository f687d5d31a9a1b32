"""JSON that anybody may have written: its keys and their types are checked before any is used."""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mm01_jax.checkpoint.errors import CheckpointError
from mm01_jax.files import shown


class Kind(NamedTuple):
    """What a value may be: in words, for a message, and as a test; of an object also what its values may be."""

    words: str
    holds: Callable[[Any], bool]
    inner: "Kind | None" = None


def one_of(*choices: str) -> Kind:
    """One of these texts."""
    return Kind(", ".join(choices), lambda value: isinstance(value, str) and value in choices)


def objects_of(kind: Kind) -> Kind:
    """An object all of whose values are of a kind."""
    return OBJECT._replace(inner=kind)


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and least <= value < 2**63


OBJECT = Kind("an object", lambda value: type(value) is dict)
LIST = Kind("a list", lambda value: type(value) is list)
TEXT = Kind("text", lambda value: isinstance(value, str))
NUMBER = Kind("a number", lambda value: type(value) in (int, float))
WHOLE = Kind("a whole number >= 0 and < 2**63", lambda value: _whole(value, 0))
POSITIVE = Kind("a whole number >= 1 and < 2**63", lambda value: _whole(value, 1))
SIZES = Kind(
    "a list of at most 16 whole numbers >= 1 and < 2**63",
    lambda value: type(value) is list and len(value) <= 16 and all(_whole(size, 1) for size in value),
)
SHA256 = Kind("64 hex digits", lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value)))


def check_keys(plain: Any, kinds: Mapping[str, Kind], path: pathlib.Path, where: str = "") -> None:
    """Raises CheckpointError, naming file and key, where a key is missing or of another kind.

    Args:
      where: "leaves.model/embed" if `plain` lies under these keys of the file.
    """
    if type(plain) is not dict:
        raise CheckpointError(f"{path}: {where or 'the file'}: got {_short(plain)}; allowed: an object")
    for key, kind in kinds.items():
        if key not in plain or not kind.holds(plain[key]):
            got = _short(plain[key]) if key in plain else "nothing"
            raise CheckpointError(f"{path}: {_name(where, key)}: got {got}; allowed: {kind.words}")
        if kind.inner:
            check_keys(plain[key], dict.fromkeys(plain[key], kind.inner), path, _name(where, key))


def _name(where: str, key: str) -> str:
    return shown(f"{where}.{key}" if where else key)


def _short(value: Any) -> str:
    if isinstance(value, list | dict) and len(value) > 20:
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value):,}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
