"""A command as data: its flags, its tasks, and what --help says of them. It parses nothing (`arguments.py` does)."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mm01_jax.config import command_line

_WIDTH = 110


class Flag(NamedTuple):
    """One flag.

    kind: str, int, float, bool, or a tuple of the words allowed.
    example: of a value; with `required`, what a refusal proposes.
    least, most: of a number. writes: it names a file that is written in the end. reads: what it names, to be read.
    """

    name: str
    words: str
    kind: type | tuple[str, ...] = str
    default: Any = None
    example: str = "TEXT"
    required: bool = False
    least: float | None = None
    most: float | None = None
    writes: bool = False
    reads: str = ""

    @property
    def typed(self) -> str:
        """As a person types it."""
        return "--" + self.name.replace("_", "-")

    @property
    def allowed(self) -> str:
        """What its value may be, in words."""
        if isinstance(self.kind, tuple):
            return ", ".join(self.kind)
        words = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}[self.kind]
        bounds = [f"{sign} {bound}" for sign, bound in ((">=", self.least), ("<=", self.most)) if bound is not None]
        return " ".join([words, " and ".join(bounds)]).strip()

    @property
    def proposed(self) -> str:
        """It with a value that is allowed."""
        of_its_kind = self.example if self.kind is str or self.example != "TEXT" else str(self.least or 1)
        first = self.kind[0] if isinstance(self.kind, tuple) else of_its_kind
        return f"{self.typed}={first if self.default is None else str(self.default).lower()}"


class Task(NamedTuple):
    """The first word of a command that takes one: what it does, its flags, the function that does it."""

    words: str
    flags: tuple[Flag, ...]
    run: Any


class Command(NamedTuple):
    """doc: its module's docstring; the last paragraph says the exit codes. takes_overrides: --config.KEY=VALUE."""

    name: str
    doc: str
    flags: tuple[Flag, ...] = ()
    tasks: Mapping[str, Task] = {}
    takes_overrides: bool = False


def flags_of(program: Command, task: str | None = None) -> tuple[Flag, ...]:
    """Its flags, and those of the task."""
    return (*program.flags, *(program.tasks[task].flags if task is not None else ()))


def text(program: Command, task: str | None = None) -> str:
    """What --help prints: what it does and examples, tasks or flags, exit codes."""
    *paragraphs, exit_codes = program.doc.strip().split("\n\n")
    if task is not None:
        paragraphs = [f"{program.name} {task}: {program.tasks[task].words}"]
    elif program.tasks:
        paragraphs.append("\n".join(["Tasks (each has its own flags: TASK --help):", *_tasks(program)]))
    if shown := list(_lines(program, task)):
        paragraphs.append("\n".join(["Flags (- and _ are alike, each is given once):", *shown]))
    if program.takes_overrides:
        paragraphs.append(textwrap.fill(f"Shipped configs: {', '.join(command_line.shipped())}.", _WIDTH))
    return "\n\n".join([*paragraphs, exit_codes])


def _tasks(program: Command) -> Iterator[str]:
    width = max(map(len, program.tasks))
    yield from (f"  {name:{width}}  {task.words}" for name, task in program.tasks.items())


def _lines(program: Command, task: str | None) -> Iterator[str]:
    for flag in flags_of(program, task):
        yield from _line(usage(flag), explained(flag))
    if program.takes_overrides:
        yield from _line("--config.KEY=VALUE", "one value of the config, e.g. --config.train.steps=600")


def _line(left: str, right: str) -> Iterator[str]:
    first, *rest = textwrap.wrap(right, _WIDTH - 28)
    if len(left) > 24:
        yield f"  {left}"
        left = ""
    yield f"  {left:24}  {first}"
    yield from (f"{'':28}{line}" for line in rest)


def usage(flag: Flag) -> str:
    """The flag with a place for its value."""
    if flag.kind is bool:
        return flag.typed
    value = "|".join(flag.kind) if isinstance(flag.kind, tuple) else flag.example if flag.kind is str else "N"
    return f"{flag.typed}={value}"


def explained(flag: Flag) -> str:
    """What it is for and what it is when it is not given."""
    if flag.required:
        return f"{flag.words} (required)"
    has_default = flag.default is not None and flag.kind is not bool
    return f"{flag.words} (default {flag.default})" if has_default else flag.words
