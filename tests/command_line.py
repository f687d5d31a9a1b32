"""Command lines of drills and benches: `--help` is the module's docstring, a wrong argument is refused in one line.

They end as commands do (`mm01_jax/command.py`), with 1 where what they look for went wrong.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Iterable
from typing import NoReturn

from mm01_jax import command, signals


class Parser(argparse.ArgumentParser):
    """`python -m MODULE`: the docstring's first line and the rest as it stands; no abbreviations of flags."""

    def __init__(self, module: str, doc: str):
        super().__init__(
            prog=f"python -m {module}",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_args(self, args=None, namespace=None):
        """As argparse's; an unknown flag names the nearest, a repeated one is refused, and errors end in a line."""
        if args is None:
            signals.end_at_once()
            sys.excepthook = self._end
            args = sys.argv[1:]
        names = [text.partition("=")[0] for text in args if text.startswith("--") and text != "--"]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            self.error(f"argument {repeated}: given {names.count(repeated)} times; allowed: once")
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            shown = [name for name, action in self._option_string_actions.items() if action.help != argparse.SUPPRESS]
            self.error(refusal("argument", flag, [name for name in shown if name.startswith("--")]))
        return parsed

    def _end(self, kind: type, error: BaseException, trace) -> None:
        """In the place of a traceback, where what went wrong is no bug: a line, and its exit code."""
        code = command.exit_code(error) if isinstance(error, Exception) else None
        if code is None:
            sys.__excepthook__(kind, error, trace)
            return
        print(f"{self.prog}: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(code)

    def error(self, message: str) -> NoReturn:
        """One line on stderr, exit code 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def refusal(what: str, name: str, allowed: Iterable[str]) -> str:
    """`no WHAT 'name'`, the nearest allowed one, and all of them."""
    allowed = list(allowed)
    close = difflib.get_close_matches(name, allowed, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"no {what} {name!r}{hint}; allowed: {', '.join(allowed)}"


def one_of(what: str, allowed: Iterable[str]):
    """An argparse type: one of these names, or a refusal that names the nearest."""
    allowed = list(allowed)

    def parse(text: str) -> str:
        if text not in allowed:
            raise argparse.ArgumentTypeError(refusal(what, text, allowed))
        return text

    return parse


def list_of(what: str, allowed: Iterable[str]):
    """An argparse type: comma-separated names, each one of these."""
    parse = one_of(what, allowed)
    return lambda text: [parse(name) for name in text.split(",")]


def list_of_whole(least: int):
    """An argparse type: comma-separated whole numbers of at least `least`; of empty text none."""
    return lambda text: [whole(least)(number) for number in text.split(",") if number]


def whole(least: int):
    """An argparse type: a whole number of at least `least`."""

    def parse(text: str) -> int:
        if not (text.isdecimal() and int(text) >= least):
            raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a whole number >= {least}")
        return int(text)

    return parse
