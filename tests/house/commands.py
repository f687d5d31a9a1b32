"""Every command that an installed package has, by its name, and the page about them.

python -m tests.house.commands > docs/commands.md
"""

import importlib
import re
from collections.abc import Iterator, Sequence

from mm01_jax import command
from mm01_jax.flag import Command, Flag, explained, usage
from tests.command_line import Parser
from tests.house.checkout import ROOT

# "mm01-train" -> "mm01_jax.train.__main__", as setup.py declares it.
MODULES = dict(re.findall(r'"(mm01-\w+)=([\w.]+):main"', (ROOT / "setup.py").read_text(encoding="utf-8")))
COMMANDS: dict[str, Command] = {name: importlib.import_module(module).COMMAND for name, module in MODULES.items()}
MAINS = {name: importlib.import_module(module).main for name, module in MODULES.items()}
EXIT_CODES = {int(code): words for code, words in re.findall(r"^    (\d+) +(.+)$", command.__doc__, re.MULTILINE)}
# A command as a whole, and with each of its tasks.
USES = [(name, task) for name, command in COMMANDS.items() for task in (None, *command.tasks)]

HEAD = """# Commands

What an installed package has. Each is also `python -m mm01_jax.ROOM`, the rooms being train, inference (of
`mm01-generate`), inference.serve, evals (of `mm01-eval`), convert, plan and data.tokenize; `train_main.py` is
`mm01-train`.
`-` and `_` are alike in a flag, a flag is given once, nothing is abbreviated, a bool is `--dry-run` or `--nodry-run`.
What is typed wrong is refused on stderr before any work, each mistake in one line with the nearest right word. A file
that is not there was typed wrong (2); one that is there and may not be read is bad data (3), but for a config (2).
`--help` says what stands here, and examples. This page is made: `python -m tests.house.commands > docs/commands.md`."""


def page() -> Iterator[str]:
    """docs/commands.md: every command's tasks and flags, and the exit codes."""
    yield HEAD
    for name, program in COMMANDS.items():
        first = " ".join(program.doc.split("\n\n")[0].split()).removeprefix(f"{name}: ")
        yield f"\n## {name}\n\n{first[0].upper()}{first[1:]}\n\n| flag | |\n| --- | --- |"
        yield from map(_row, program.flags)
        if program.takes_overrides:
            yield "| `--config.KEY=VALUE` | one value of the config |"
        for task, (words, flags, _) in program.tasks.items():
            yield f"| **{task}** | {words} |"
            yield from map(_row, flags)
    yield "\n## Exit codes\n\n| | |\n| --- | --- |"
    yield from (f"| {code} | {words}{''.join(_more(code, words))} |" for code, words in EXIT_CODES.items())


def codes_said(text: str) -> dict[int, str]:
    """The sentence "Exit codes: 0 done, ..." of a text."""
    (sentence,) = re.findall(r"Exit codes: (.*?)\.(?:\s|$)", " ".join(text.split()))
    return {int(code): words for code, words in re.findall(r"(\d+) (.*?)(?=, \d+ |$)", sentence)}


def _more(code: int, words: str) -> Iterator[str]:
    """What a code means to a command beyond the words that all share, as its own help says it."""
    for name, program in COMMANDS.items():
        if more := codes_said(program.doc).get(code, words).removeprefix(words).lstrip(", "):
            yield f"; {name}: {more}"


def _row(flag: Flag) -> str:
    return f"| `{usage(flag).replace('|', '\\|')}` | {explained(flag)} |"


def main(argv: Sequence[str] | None = None) -> None:
    Parser("tests.house.commands", __doc__).parse_args(argv)
    print("\n".join(page()))


if __name__ == "__main__":
    main()
