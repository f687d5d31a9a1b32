"""Directories made hostile: a sound one (`readers.py`), spoiled in one way, read in a process of its own, judged.

    no traceback, no hang, at most 200 MiB more memory, nothing written or deleted outside, a message of at most
    20 printable lines that names what is wrong

Every way is a function of (directory, random) that returns words which the message may name the thing by.
"""

import pathlib
import random
import re
import shutil
from collections.abc import Callable
from typing import NamedTuple

from tests.faults import readers
from tests.faults.forked import Ended

SECONDS = 60.0  # after which it hangs, on a machine that does other things as well
PROCESSOR = 5.0  # seconds of it that a reader may take
MEMORY = 200 << 20
LINES = 20
HOLE = 30_000_000_000  # bytes of a sparse file
Spoil = Callable[[pathlib.Path, random.Random], str]


class Member(NamedTuple):
    """A way to spoil what `reader` reads, the seed of its choices, and whether it must be refused."""

    reader: str
    spoil: Spoil
    seed: int
    refused: bool = False


DOUBLED = re.compile(r"(?:^|: )([^\s{}\[\]'\"]{4,}): \1: ")  # a name before a name: an error inside another


def judge(member: Member, room: pathlib.Path) -> str | None:
    """What of the promise above is broken; None where all of it is kept."""
    return tried(member, room)[0]


def tried(member: Member, room: pathlib.Path) -> tuple[str | None, Ended]:
    """What is broken, and how the reader ended."""
    shutil.copytree(readers.sound(member.reader), room / "in", symlinks=True)
    outside = room / "outside"
    outside.mkdir()
    for name in ("kept.txt", "kept.json"):
        (outside / name).write_text("{}")
    (outside / "folder").mkdir()
    (outside / "folder" / "kept").write_text("x")
    before = _contents(outside)
    thing = member.spoil(room / "in", random.Random(f"{member.reader} {member.seed}"))
    ended = readers.server().call(f"tests.faults.readers:{member.reader}", str(room / "in"), room=room, seconds=SECONDS)
    return _broken(member, ended, thing, _contents(outside) != before), ended


def _broken(member: Member, ended, thing: str, changed: bool) -> str | None:
    message = [line for line in ended.complained.splitlines() if not is_progress(line)]
    if ended.hung:
        return f"hangs: {ended.said[-300:]}"
    if ended.code < 0 or "Traceback" in ended.complained or ended.code == 1:
        return f"ends with {ended.code}: {ended.complained[-700:]}"
    if changed or ended.outside:
        return f"writes outside: {ended.outside[:3]}"
    if ended.memory > MEMORY:
        return f"takes {ended.memory >> 20} MiB: {message[-1:]}"
    if ended.processor > PROCESSOR:
        return f"takes {ended.processor:.1f} s of processor time: {message[-1:]}"
    if ended.code == 0:
        return f"is taken: {ended.said[-200:]}" if member.refused else None
    if not 0 < len(message) <= LINES or len(ended.complained) > 8000:
        return f"says {len(message)} lines, {len(ended.complained)} characters: {message[:2]}"
    if not all(line.isprintable() for line in message):
        return f"says what a terminal obeys: {message[:2]!r}"
    if doubled := next((match[1] for match in map(DOUBLED.search, message) if match), None):
        return f"says {doubled} twice: {message[:2]}"
    names = [name for name in thing.split("|") if name]
    if not any(name in line for name in names for line in message):
        return f"does not name {thing}: {message[:3]}"
    return None


def is_progress(line: str) -> bool:
    """Whether a line of stderr says how far a command is, and no more."""
    return line.startswith(("from-torch ", "check ", "step ")) or not line.strip()


def _contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def members(reader: str, ways: dict[str, Spoil], refused: tuple[str, ...] = (), count: int = 80) -> dict[str, Member]:
    """`count` members: every way in turn, each time with other choices."""
    found: dict[str, Member] = {}
    for number in range(count):
        title = list(ways)[number % len(ways)]
        name = title.replace("_", " ")
        again = number // len(ways)
        member = Member(reader, ways[title], number, title in refused)
        found[f"{name} ({again + 1})" if again else name] = member
    return found


def ways(*groups: tuple[Spoil, ...]) -> dict[str, Spoil]:
    return {spoil.__name__: spoil for group in groups for spoil in group}
