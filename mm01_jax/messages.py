"""How much a message says: what is listed is cut, and a message is at most a screen. Imports nothing of ours."""

import functools
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO

LINES = 20  # of a message
_MOVING = {number: ascii(chr(number))[1:-1] for number in (*range(32), *range(127, 160)) if number not in (9, 10)}
CHARACTERS = 4000  # of all of it: twenty lines of a wide terminal
LISTED = 12  # of many problems
_ALIKE = 3  # names alike but for their numbers are one problem from here on


def counted(count: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listing(problems: Sequence, between: str = "; ", said: Callable[[Any], str] = str) -> str:
    """The first problems in one text, and how many more there are. said: what one is in words."""
    more = [f"and {len(problems) - LISTED:,} more"] if len(problems) > LISTED else []
    return between.join([*map(said, problems[:LISTED]), *more])


def grouped(what: str, names: Iterable[str]) -> list[str]:
    """`what` and each name; names that differ in numbers alone are told together, with the first of them."""
    return [f"{what} {told}" for told in together(names)]


def together(texts: Iterable[str]) -> list[str]:
    """Texts, a line each, of which those that differ in numbers alone are one, with the first of them."""
    alike: dict[str, list[str]] = {}
    for text in map(_line, texts):
        alike.setdefault(re.sub(r"\d+", "*", text), []).append(text)
    told = []
    for group in alike.values():
        if len(group) < _ALIKE:
            told += group
        else:
            numbers = zip(*(re.findall(r"\d+", text) for text in group), strict=True)
            said = (each[0] if len(set(each)) == 1 else "*" for each in numbers)  # that of a folder is the same in all
            pattern = re.sub(r"\d+", lambda _, said=said: next(said), group[0])
            told.append(f"{len(group):,} of {pattern}, the first {group[0]}")
    return told


def screen(message: object) -> str:
    """A message as it is printed: no character in it moves a cursor, and it is at most `LINES` lines."""
    lines = str(message).splitlines() or [""]
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], f"and {len(lines) - LINES + 1:,} more lines"]
    text = "\n".join(map(_line, lines))
    return text if len(text) <= CHARACTERS else f"{text[: CHARACTERS - 4]} ..."


def _line(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def say(message: object) -> None:
    """On stdout, as `screen` has it."""
    print(screen(message))


def answer(text: str, out: TextIO) -> str:
    """What a model says as it is written to `out`: to a terminal, without what moves its cursor or gives it orders."""
    return text.translate(_MOVING) if out.isatty() else text


@functools.cache
def say_once(message: str) -> None:
    """On stderr, the first time that a process says it; nothing of an empty one."""
    if message:
        print(screen(message), file=sys.stderr, flush=True)
