"""The files that a glob names: as `glob.glob(recursive=True)` finds them, and looking at a bounded number of names.

A config that came with a checkpoint may hold any glob. One with several `**`, links that form circles, or `/proc`
would be walked for as long as one waits.
"""

import contextlib
import fnmatch
import glob
import os
import re
import time
from collections.abc import Callable, Iterator

from mm01_jax.data.text import PROGRESS_SECONDS, Unreadable
from mm01_jax.files import quoted

MOST_NAMES = 2_000_000  # looked at by one glob
MOST_OTHERS = 100_000  # of them that are no data: 2 s where the disk is cold. And so many for each file of data:
_OTHERS_EACH = 4
_MOST_WILD = 32  # parts of a glob that have a wildcard
_PSEUDO = ("/proc", "/sys")  # what lies there is no data, and is made while one looks


def find(
    pattern: str, log: Callable[[str], None] = lambda line: None, is_data: Callable[[str], bool] = lambda name: True
) -> list[str]:
    """What `pattern` names, each name once, folders too. Unreadable: it would look at too much, or at too little data.

    is_data: whether a name is one of those that are looked for.
    """
    parts = [part for part in pattern.split("/") if part] + ["."] * pattern.endswith("/")
    if sum(map(glob.has_magic, parts)) > _MOST_WILD:
        raise Unreadable(f"data.source={quoted(pattern)}: a glob of more than {_MOST_WILD} parts with wildcards")
    return list(set(_Walk(pattern, log, is_data).matches("/" if pattern.startswith("/") else "", parts)))


class _Walk:
    def __init__(self, pattern: str, log: Callable[[str], None], is_data: Callable[[str], bool]):
        self._pattern, self._log, self._is_data = pattern, log, is_data
        self._looked, self._found, self._clock = 0, 0, time.monotonic()
        self._seen: set[tuple[int, int]] = set()  # folders
        self._pseudo = {os.stat(place).st_dev for place in _PSEUDO if os.path.ismount(place)}

    def matches(self, place: str, parts: list[str], names: list[tuple[str, bool]] | None = None) -> Iterator[str]:
        """names: those of `place`, where they are known."""
        fixed = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
        if fixed:
            place, parts = os.path.join(place, *parts[:fixed]), parts[fixed:]
            names = None
            if not parts and os.path.lexists(place):
                yield place
        if not parts:
            return
        first, rest = parts[0], parts[1:]
        if first == "**":
            while rest[:1] == ["**"]:
                rest = rest[1:]
            for folder, inner in self._below(place):
                yield from self.matches(folder, rest or ["*"], inner)
            return
        is_match = re.compile(fnmatch.translate(first)).match
        for name, is_folder in self._names(place) if names is None else names:
            if is_match(name) and (name[0] != "." or first[0] == "."):
                path = os.path.join(place, name)
                if not rest:
                    yield path
                elif is_folder:
                    yield from self.matches(path, rest)

    def _below(self, place: str) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
        """A folder and those in it that are not hidden, with their names; links are followed, but not in circles."""
        left = [(place, frozenset())]
        while left:
            folder, above = left.pop()
            with contextlib.suppress(OSError):
                status = os.stat(folder or ".")
                if (here := (status.st_dev, status.st_ino)) in above:
                    continue
                names, above = self._names(folder), above | {here}
                yield folder, names
                inner = (name for name, is_folder in names if is_folder and name[0] != ".")
                left += [(os.path.join(folder, name), above) for name in inner]

    def _names(self, place: str) -> list[tuple[str, bool]]:
        """(name, whether it is a folder) of what lies in a folder; none where it cannot be read."""
        names = []
        with contextlib.suppress(OSError):
            status = os.stat(place or ".")
            here = status.st_dev, status.st_ino
            is_new = here not in self._seen  # links may lead to it in very many ways
            self._seen.add(here)
            if status.st_dev in self._pseudo:
                self._refuse(f"leads into {place}, which is no folder of data")
            with os.scandir(place or ".") as entries:
                for entry in entries:
                    is_folder = _is_folder(entry)
                    # A link `x.txt` to `.` is no data.
                    self._found += is_new and not is_folder and self._is_data(entry.name)
                    self._count()
                    names.append((entry.name, is_folder))
        return names

    def _count(self) -> None:
        self._looked += 1
        if self._looked > MOST_NAMES:
            self._refuse(f"looks at more than {MOST_NAMES:,} names; name a folder, or fewer by the glob")
        if self._looked - self._found > MOST_OTHERS + _OTHERS_EACH * self._found:
            found = f"looked at {self._looked:,} names and found {self._found:,} of data"
            self._refuse(f"{found}; name a folder, or fewer by the glob")
        if self._looked % 4096 == 0 and time.monotonic() - self._clock > PROGRESS_SECONDS:
            self._clock = time.monotonic()
            self._log(f"data: looked at {self._looked:,} names (at most {MOST_NAMES:,}) for {quoted(self._pattern)}")

    def _refuse(self, what: str) -> None:
        raise Unreadable(f"data.source={quoted(self._pattern)}: {what}")


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
