"""The words and flags of every command: declared as data, read by absl, refused by name in one line, shown by --help.

`-` and `_` are alike in a flag, a flag is given once, a bool is --dry-run or --nodry-run, and nothing is abbreviated.
A command either takes flags alone or first a task, a word with flags of its own (`mm01-eval perplexity`).
"""

import re
import types
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from mm01_jax import command
from mm01_jax.config import ConfigError, Problem, command_line, fields
from mm01_jax.flag import Command, Flag, flags_of, text
from mm01_jax.values import allowed_instead, nearest_path

_OVERRIDE = "config."
_HELP = ("help", "h")

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


def read(program: Command, argv: Sequence[str]) -> types.SimpleNamespace:
    """The value of every flag by its name; `task`, the word or None; `overrides`, ["train.steps=10"].

    Args:
      argv: without the program's name.

    Raises:
      ConfigError: flags that are unknown, wrong, repeated or missing, each of them, or a word too many or too few.
      command.Help: the help was asked for.
    """
    given, words, problems = _split(program, argv)
    task = _task(program, words, _asks_help(given))
    if _asks_help(given):
        raise command.Help(text(program, task))
    known = {flag.name: flag for flag in flags_of(program, task)}
    seen, overrides, accepted = set(), [], []
    for typed, name, value in given:
        flag = None
        if program.takes_overrides and name.startswith(_OVERRIDE):
            one = name
            overrides.append(name.removeprefix(_OVERRIDE) + (f"={value}" if value is not None else ""))
        elif (flag := _known_flag(known, name, value)) is None:
            problems.append(_unknown(program, task, known, typed, name, value))
            continue
        else:
            one = flag.name
        if one in seen:
            got = "no value" if value is None else value
            problems.append(_problem(typed, got, "once on a command line", f"one {typed}"))
        elif flag is not None:
            accepted.append((flag, f"--{name}" if value is None else f"--{name}={value}", value))
        seen.add(one)
    found = _values(program, list(known.values()), accepted, problems)
    if problems:
        told = any(problem.key == CONFIG.typed for problem in problems)
        raise ConfigError(problems if told else [*problems, *_config_problems(program, found, overrides)])
    return types.SimpleNamespace(**found, task=task, overrides=overrides)


def _config_problems(program: Command, found: Mapping[str, Any], overrides: Sequence[str]) -> Sequence[Problem]:
    """What is wrong with the config of a line that is refused, so that all of it is said at once; no file is run."""
    name = found.get(CONFIG.name)
    if not program.takes_overrides or not name or name.endswith(".py"):
        return ()
    try:
        command_line.load_config(name, overrides)
    except ConfigError as error:
        return error.problems
    return ()


def _split(program: Command, argv: Sequence[str]) -> tuple[list[tuple[str, str, str | None]], list[str], list[Problem]]:
    """([(as typed, name with `_`, value or None)], words, what is wrong with how flags are written)."""
    every = {flag.name: flag for name in (program.tasks or [None]) for flag in flags_of(program, name)}
    given, words, problems, left = [], [], [], list(argv)[::-1]
    while left:
        argument = left.pop()
        match = re.fullmatch(r"(--?([A-Za-z][^=]*))(?:=(.*))?", argument, re.DOTALL)
        if argument == "--":
            words += left[::-1]
            break
        if not match and argument.startswith("-"):  # ---config, --=x
            near = fields.nearest_name(argument.strip("-").partition("=")[0].replace("-", "_"), [*every, *_HELP])
            nearest = f"--{(near or 'help').replace('_', '-')}"
            problems.append(_problem(argument, "no flag", "flags, written --name=value", nearest))
        elif not match:
            words.append(argument)
        else:
            typed, name, value = match[1], match[2].replace("-", "_"), match[3]
            if value is None and name in every and every[name].kind is not bool:
                if not left or left[-1].startswith("--"):
                    problems.append(_problem(typed, "no value", every[name].allowed, every[name].proposed))
                    continue
                value = left.pop()
            given.append((typed, name, value))
    return given, words, problems


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


def _known_flag(known: Mapping[str, Flag], name: str, value: str | None) -> Flag | None:
    flag = known.get(name) or known.get(name.removeprefix("no"))
    return None if flag is None or (flag.name != name and (flag.kind is not bool or value is not None)) else flag


def _unknown(program: Command, task: str | None, known: Mapping[str, Flag], typed: str, name: str, value) -> Problem:
    keys = [f"{_OVERRIDE}{key}" for key in fields.leaf_types()] if program.takes_overrides else []
    near = fields.nearest_name(name, [*known, *_HELP, *keys])
    nearest = known[near].typed if near in known else f"--{near}" if near else "--help"
    of = f"a flag of {' '.join(filter(None, (program.name, task)))} (see --help)"
    return _problem(typed, "no value" if value is None else value, of, nearest)


def _values(program: Command, known: Sequence[Flag], accepted, problems: list[Problem]) -> dict[str, Any]:
    """Name -> value, as absl reads it; adds what is wrong to `problems`, of a flag once.

    A flag that is missing because it is what an unknown one was meant to be is no second problem.
    """
    values = flags.FlagValues()
    for flag in known:
        _define(flag, values)
    wrong = {problem.key.replace("_", "-") for problem in problems} | {problem.nearest for problem in problems}
    for flag, argument, value in accepted:
        try:
            values([program.name, argument])
        except flags.Error:
            if flag.typed in wrong:
                continue
            near = fields.nearest_name(str(value), flag.kind) if isinstance(flag.kind, tuple) else None
            problems.append(_problem(flag.typed, value, flag.allowed, near or flag.proposed))
            wrong.add(flag.typed)
    found = {flag.name: values[flag.name].value for flag in known}
    problems += filter(None, (_value_problem(flag, found[flag.name]) for flag in known if flag.typed not in wrong))
    return found


def _value_problem(flag: Flag, value: Any) -> Problem | None:
    """What is wrong with a value of its flag's kind."""
    if value == "" or (flag.required and value is None):  # empty: a shell's variable that is not set
        return _problem(flag.typed, "nothing", flag.words, flag.proposed)
    if allowed := allowed_instead(value, writes=flag.writes):
        return _problem(flag.typed, value, allowed, flag.proposed)
    if flag.reads and (allowed := allowed_instead(value, reads=flag.reads)):
        near = nearest_path(value)
        return _problem(flag.typed, value, allowed, f"{flag.typed}={near}" if near else None)
    return None


def _define(flag: Flag, values: flags.FlagValues) -> None:
    if isinstance(flag.kind, tuple):
        flags.DEFINE_enum(flag.name, flag.default, flag.kind, flag.words, flag_values=values)
    elif flag.kind is int or flag.kind is float:
        define = flags.DEFINE_integer if flag.kind is int else flags.DEFINE_float
        bounds = {"lower_bound": flag.least, "upper_bound": flag.most}
        define(flag.name, flag.default, flag.words, flag_values=values, **bounds)
    else:
        define = flags.DEFINE_bool if flag.kind is bool else flags.DEFINE_string
        define(flag.name, flag.default, flag.words, flag_values=values)


def _problem(key: str, got: Any, allowed: str, nearest: str | None) -> Problem:
    return Problem(key=key, got=got, allowed=allowed, nearest=nearest)


def refused(key: str, got: Any, allowed: str, nearest: str | None) -> ConfigError:
    """The error of something typed, in the form that all have."""
    return ConfigError([_problem(key, got, allowed, nearest)])
