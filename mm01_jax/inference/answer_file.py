"""The file of answers to a file of prompts: written as they come beside its place, and gone on with when cut off.

`OUT.partial` has the answers so far, `OUT.partial.json` what they follow from: weights, prompts, settings. When the
last answer is there both are gone, and OUT is there.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mm01_jax.data.text import BadFile
from mm01_jax.files import Door, parse_json, shown, update, write
from mm01_jax.inference.asked import Answer

_LINE = 2**26  # bytes of an answer with all that its prompt's line has
RESULT = ("text", "finish", "thinking", "error")
FILES = Door(ValueError)


class Begun(NamedTuple):
    """prompts: whose answers are all there already. size: bytes of those in the partial file."""

    prompts: int = 0
    size: int = 0


def check_place(path: str, source: str) -> None:
    """ValueError where the result, or what is written beside it until then, would replace what it is made of."""
    for place in (pathlib.Path(path), *_places(path)):
        if place.exists() and place.samefile(source):
            beside = "" if place == pathlib.Path(path) else f", whose answers lie in {place.name} at first"
            raise ValueError(f"--out={path}{beside}: allowed: another file than --prompts")


def begin(path: str, follows_from: Mapping[str, Any], samples: Sequence[int]) -> Begun:
    """What is there of the answers to prompts of so many samples each; nothing is written where they are of others.

    Raises:
      ValueError: the partial file has answers that follow from something else; says from what.
    """
    partial, told = _places(path)
    begun = Begun()
    if os.path.lexists(partial):
        if not os.path.lexists(told):
            raise ValueError(f"{partial}: holds answers to nobody knows what; remove it to begin anew")
        known = FILES.json(told, root=told.parent)
        if other := [name for name in {**follows_from, **known} if known.get(name) != follows_from.get(name)]:
            got, want = (json.dumps(one.get(other[0])) for one in (known, follows_from))
            raise ValueError(
                f"{partial}: holds answers of {shown(other[0])}={got}, not {want}; remove it to begin anew"
            )
        begun = _whole(partial, samples)
    elif os.path.lexists(told) and not _is_ours(told, follows_from):
        raise ValueError(f"{told}: says not what answers follow from; remove it, or name another --out")
    write(told, json.dumps(follows_from, indent=1).encode())
    return begun


def _is_ours(told: pathlib.Path, follows_from: Mapping[str, Any]) -> bool:
    """Whether a file is one of `begin`'s, of other answers too: those are gone, so it may be replaced."""
    try:
        return FILES.json(told, root=told.parent).keys() == follows_from.keys()
    except ValueError:
        return False


def _whole(partial: pathlib.Path, samples: Sequence[int]) -> Begun:
    """The prompts whose answers are all in a file, line by line; a line that was cut off is none."""
    begun, lines, size = Begun(), 0, 0
    with FILES.open(partial, root=partial.parent) as file:
        while line := file.readline(_LINE + 1):
            lines, size = lines + 1, size + len(line)
            if begun.prompts == len(samples) or not _is_whole(line, partial):
                break
            if lines == samples[begun.prompts]:
                begun, lines = Begun(begun.prompts + 1, size), 0
    return begun


def _is_whole(line: bytes, partial: pathlib.Path) -> bool:
    """Whether an answer was not cut off; ValueError where it is none."""
    if len(line) <= _LINE and not line.endswith(b"\n"):
        return False
    try:
        answer = parse_json(line[:_LINE])
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("text"), str):
        raise BadFile(f"{partial}: has a line that is no answer; remove it to begin anew")
    return True


def finish(path: str, begun: Begun, lines: Iterable[tuple[dict[str, Any], Answer]]) -> None:
    """Writes the rest of the answers as they come; in the end the file gets its name. An OSError names the file."""
    partial, told = _places(path)
    try:
        with os.fdopen(update(partial), "r+", encoding="utf-8", newline="\n") as file:
            file.truncate(begun.size)
            file.seek(begun.size)
            for fields, answer in lines:
                said = {name: getattr(answer, name) for name in RESULT}
                record = fields | {name: value for name, value in said.items() if value is not None}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                file.flush()
        partial.replace(pathlib.Path(path).resolve())
        told.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(partial)) from None


def _places(path: str) -> tuple[pathlib.Path, pathlib.Path]:
    place = pathlib.Path(path).resolve()  # a link stays one
    return place.with_name(f"{place.name}.partial"), place.with_name(f"{place.name}.partial.json")
