"""The words and flags of every command: declared as data, read by absl, refused by name in one line, shown by --help.

`-` and `_` are alike in a flag, a flag is given once, a bool is --dry-run or --nodry-run, and nothing is abbreviated.
A command either takes flags alone or first a task, a word with flags of its own (`mm01-eval perplexity`).
"""

import re
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from mm01_jax import command
from mm01_jax.config import ConfigError, Problem, command_line, fields
from mm01_jax.values import allowed_instead, nearest_path

_OVERRIDE = "config."
_HELP = ("help", "h")
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

    def define(self, values: flags.FlagValues) -> None:
        if isinstance(self.kind, tuple):
            flags.DEFINE_enum(self.name, self.default, self.kind, self.words, flag_values=values)
        elif self.kind is int or self.kind is float:
            define = flags.DEFINE_integer if self.kind is int else flags.DEFINE_float
            bounds = {"lower_bound": self.least, "upper_bound": self.most}
            define(self.name, self.default, self.words, flag_values=values, **bounds)
        else:
            define = flags.DEFINE_bool if self.kind is bool else flags.DEFINE_string
            define(self.name, self.default, self.words, flag_values=values)


CONFIG = Flag(
    "config",
    "the name of a shipped config, a .py file with get_config, or a saved config in .json",
    example="tiny",
    required=True,
)
CHECKPOINT = Flag(
    "checkpoint",
    "a run's work directory, one of its steps, a conversion, or a PyTorch directory",
    example="runs/tiny",
    required=True,
    reads="a folder",
)
MESH = Flag(
    "mesh",
    "sizes of mesh axes, those not named are 1; auto: the planner's choice for the devices here (default one device)",
    example="data=2,tensor=4",
)
ALLOW_NONFINITE = Flag("allow_nonfinite", "take weights with NaN and infinity, too", bool, default=False)
# What `loading.load` takes beside the checkpoint.
LOADING = (
    CHECKPOINT,
    MESH,
    Flag("dtype", "of weights and computation; otherwise the checkpoint's own", ("bfloat16", "float32")),
    Flag("tokenizer", "bytes, or a tokenizer.json; otherwise the checkpoint's own", example="FILE"),
    ALLOW_NONFINITE,
    Flag("quantize", "matrices as int8: the experts', or the attention's as well", ("int8", "int8_attention")),
)
COMPILE_CACHE = Flag(
    "compile_cache",
    "keep compiled programs in the user's cache folder for next time; --nocompile-cache: neither read nor write it",
    bool,
    default=True,
)


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


def read(program: Command, argv: Sequence[str]) -> types.SimpleNamespace:
    """The value of every flag by its name; `task`, the word or None; `overrides`, ["train.steps=10"].

    Args:
      argv: without the program's name.

    Raises:
      ConfigError: a flag that is unknown, wrong, repeated or missing, or a word too many or too few.
      command.Help: the help was asked for.
    """
    given, words = _split(program, argv)
    task = _task(program, words, _asks_help(given))
    known = {flag.name: flag for flag in flags_of(program, task)}
    if _asks_help(given):
        raise command.Help(text(program, task))
    seen, overrides, accepted = set(), [], []
    for typed, name, value in given:
        if program.takes_overrides and name.startswith(_OVERRIDE):
            one = name
            overrides.append(name.removeprefix(_OVERRIDE) + (f"={value}" if value is not None else ""))
        else:
            flag = _known_flag(program, task, known, typed, name, value)
            one = flag.name
            accepted.append((flag, f"--{name}" if value is None else f"--{name}={value}", value))
        if one in seen:
            raise refused(typed, "no value" if value is None else value, "once on a command line", f"one {typed}")
        seen.add(one)
    found = _values(program, list(known.values()), accepted)
    return types.SimpleNamespace(**found, task=task, overrides=overrides)


def _split(program: Command, argv: Sequence[str]) -> tuple[list[tuple[str, str, str | None]], list[str]]:
    """([(as typed, name with `_`, value or None)], words)."""
    every = {flag.name: flag for name in (program.tasks or [None]) for flag in flags_of(program, name)}
    given, words, rest = [], [], iter(argv)
    for argument in rest:
        match = re.fullmatch(r"(--?([A-Za-z][^=]*))(?:=(.*))?", argument, re.DOTALL)
        if argument == "--":
            words += rest
        elif not match and argument.startswith("-"):  # ---config, --=x
            near = fields.nearest_name(argument.strip("-").partition("=")[0].replace("-", "_"), [*every, *_HELP])
            raise refused(argument, "no flag", "flags, written --name=value", f"--{(near or 'help').replace('_', '-')}")
        elif not match:
            words.append(argument)
        else:
            typed, name, value = match[1], match[2].replace("-", "_"), match[3]
            if value is None and name in every and every[name].kind is not bool:
                value = next(rest, None)
                if value is None or value.startswith("--"):
                    raise refused(typed, "no value", every[name].allowed, every[name].proposed)
            given.append((typed, name, value))
    return given, words


def _asks_help(given) -> bool:
    return any(name in _HELP for _, name, _ in given)


def _task(program: Command, words: list[str], help_asked: bool) -> str | None:
    if not program.tasks:
        if words:
            allowed, first = "flags, written --name=value; text with spaces in quotes", program.flags[0]
            raise refused("command line", words[0], allowed, f"{first.typed}={words[0]}" if first.kind is str else None)
        return None
    if not words and help_asked:
        return None
    allowed, first = "one of " + ", ".join(program.tasks), next(iter(program.tasks))
    if not words:
        raise refused("task", "none", allowed, first)
    task = next((name for name in program.tasks if name.replace("-", "_") == words[0].replace("-", "_")), None)
    if task is None:
        raise refused("task", words[0], allowed, fields.nearest_name(words[0], program.tasks) or first)
    if words[1:]:
        raise refused("command line", words[1], f"one task, then flags, written --name=value (task: {task})", None)
    return task


def _known_flag(program: Command, task: str | None, known: Mapping[str, Flag], typed: str, name: str, value) -> Flag:
    flag = known.get(name) or known.get(name.removeprefix("no"))
    if flag is None or (flag.name != name and (flag.kind is not bool or value is not None)):
        keys = [f"{_OVERRIDE}{key}" for key in fields.leaf_types()] if program.takes_overrides else []
        near = fields.nearest_name(name, [*known, *_HELP, *keys])
        nearest = known[near].typed if near in known else f"--{near}" if near else "--help"
        of = f"a flag of {' '.join(filter(None, (program.name, task)))} (see --help)"
        raise refused(typed, "no value" if value is None else value, of, nearest)
    return flag


def _values(program: Command, known: Sequence[Flag], accepted) -> dict[str, Any]:
    """Name -> value, as absl reads it."""
    values = flags.FlagValues()
    for flag in known:
        flag.define(values)
    for flag, argument, value in accepted:
        try:
            values([program.name, argument])
        except flags.Error:
            near = fields.nearest_name(str(value), flag.kind) if isinstance(flag.kind, tuple) else None
            raise refused(flag.typed, value, flag.allowed, near or flag.proposed) from None
    for flag in known:
        value = values[flag.name].value
        if value == "" or (flag.required and value is None):  # empty: a shell's variable that is not set
            raise refused(flag.typed, "nothing", flag.words, flag.proposed)
        if allowed := allowed_instead(value, writes=flag.writes):
            raise refused(flag.typed, value, allowed, flag.proposed)
    for flag in known:  # when all is a value of its kind
        if flag.reads and (allowed := allowed_instead(value := values[flag.name].value, reads=flag.reads)):
            near = nearest_path(value)
            raise refused(flag.typed, value, allowed, f"{flag.typed}={near}" if near else None)
    return {flag.name: values[flag.name].value for flag in known}


def refused(key: str, got: Any, allowed: str, nearest: str | None) -> ConfigError:
    """The error of something typed, in the form that all have."""
    return ConfigError([Problem(key=key, got=got, allowed=allowed, nearest=nearest)])


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
