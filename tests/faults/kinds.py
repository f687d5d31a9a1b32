"""Kinds of faults: each is a module `kind_NAME.py` beside this one, whose members are tried one by one and judged.

Such a module has

    WORDS    one line: what holds of every member
    MEMBERS  {name of a member: whatever the judge takes}
    EVERY    optional: one of so many members is tried by default, for members that take seconds; None: not one
    judge(member, room) -> None where it holds, else what went wrong; `room` is an empty folder that is removed after it

and is found by its name alone. A judge that raises has found a fault.
"""

import importlib
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

TENTH = 10  # one of so many members is tried by default


class Kind(NamedTuple):
    """One kind. members: by name."""

    name: str
    words: str
    members: Mapping[str, Any]
    judge: Callable[[Any, pathlib.Path], str | None]
    every: int | None = TENTH

    def chosen(self, counts: str) -> list[str]:
        """Names of the members of a count: "full" is all of them, "fast" a tenth or less, spread over the list."""
        if counts == "full":
            return list(self.members)
        return list(self.members)[:: self.every] if self.every else []


class Outcome(NamedTuple):
    """What came of a kind's members. wrong: what went wrong, by the member's name. slowest: seconds of one member."""

    tried: int
    wrong: dict[str, str]
    slowest: float

    @property
    def ok(self) -> int:
        return self.tried - len(self.wrong)


def names() -> list[str]:
    """Every kind that there is."""
    return sorted(path.stem.removeprefix("kind_") for path in pathlib.Path(__file__).parent.glob("kind_*.py"))


def load(name: str) -> Kind:
    """The kind of a name; its module is imported now."""
    module = importlib.import_module(f"tests.faults.kind_{name}")
    return Kind(name, module.WORDS, module.MEMBERS, module.judge, getattr(module, "EVERY", TENTH))


def attempt(kind: Kind, members: Iterable[str], done: Callable[[str, str | None], None] = lambda *_: None) -> Outcome:
    """Tries the members named; `done` is told each one's name and what was wrong."""
    tried, wrong, slowest = 0, {}, 0.0
    for name in members:
        room = pathlib.Path(tempfile.mkdtemp(prefix="fault-"))
        start = time.monotonic()
        try:
            problem = kind.judge(kind.members[name], room)
        except Exception as error:  # a judge must not end the count
            problem = f"{type(error).__name__}: {error}"
        finally:
            shutil.rmtree(room, ignore_errors=True)
        slowest = max(slowest, time.monotonic() - start)
        tried += 1
        if problem:
            wrong[name] = problem
        done(name, problem)
    return Outcome(tried, wrong, slowest)
