"""Command lines and config files that are wrong, for every command and task, and the call that types one."""

import itertools
import json
import os
import pathlib
import random
import time
from collections.abc import Iterator

from mm01_jax.flag import Flag, flags_of
from mm01_jax.inference.drill import __main__ as drill
from tests.config import wrong_configs
from tests.house import commands

COUNT = 600
COMMANDS = commands.COMMANDS | {drill.COMMAND.name: drill.COMMAND}
MAINS = commands.MAINS | {drill.COMMAND.name: drill.main}
USES = [*commands.USES, (drill.COMMAND.name, None)]
SECONDS = 2.0  # of CPU, of this process: the machine may be busy
HUGE = 2 * 2**30  # bytes of a config that nobody wrote

# Values that no flag of a kind takes.
_NO_NUMBER = ("nan", "inf", "-inf", "many", "1e999", "0x10", "1_0_", "--", "9" * 5000)
_NO_CHOICE = ("", "nothing-like-it", "TRAIN ", "\x1b[31m", "é")

# Config files that are none: name -> text, or what to do instead of writing one.
_FILES = {
    "exits.py": "import sys\nsys.exit()\n",
    "exits_in_call.py": "def get_config():\n    raise SystemExit(0)\n",
    "syntax.py": "def get_config(:\n",
    "nul.py": "x = '\0'\n",
    "empty.py": "",
    "none.py": "def get_config():\n    return None\n",
    "deep.py": "def get_config():\n    return get_config()\n",
    "divides.py": "def get_config():\n    return 1 / 0\n",
    "no_module.py": "import nothing_of_this_name\n",
    "latin.py": b"# caf\xe9\n",
    "empty.json": "",
    "list.json": "[]",
    "deep.json": "[" * 100_000,
    "cut.json": '{"name": "tiny", ',
    "nan.json": '{"name": NaN}',
    "twice.json": '{"name": "a", "name": "b"}',
    "latin.json": b'{"name": "caf\xe9"}',
    "unknown.json": json.dumps({f"key_{number}": number for number in range(10_000)}),
    "digits.json": '{"name": ' + "9" * 400 + "}",
    "a text.txt": "name: tiny",
}


def cases() -> dict[str, list[str]]:
    """Title -> the command's name and what is typed after it; {room} stands for the folder of the files."""
    found = {}
    for number, (title, argv) in enumerate(itertools.islice(_all(), COUNT)):
        found[f"{number:03} {title}"[:100]] = argv
    return found


def _all() -> Iterator[tuple[str, list[str]]]:
    yield from _of_files()
    yield from _of_paths()
    for name, task in USES:
        if task or not COMMANDS[name].tasks:
            yield from _of_flags(name, task)
    for wrong in wrong_configs.generated(2 * COUNT, seed=7):
        if wrong.overrides:
            overrides = [f"--config.{text}" for text in wrong.overrides]
            yield wrong.title, ["mm01-train", "--config=tiny", "--workdir={room}/in/run", *overrides]


def _of_files() -> Iterator[tuple[str, list[str]]]:
    for file in (*_FILES, "huge.json", "huge.py", "folder.py", "pipe.py", "loop.json", "x" * 300, "x" * 300 + ".py"):
        for command in (["mm01-train", "--workdir={room}/in/run"], ["mm01-plan", "--target=h100-8", "--no-compile"]):
            yield f"{command[0]} of {file[:20]}", [*command, f"--config={{room}}/in/{file}"]


def _of_paths() -> Iterator[tuple[str, list[str]]]:
    train = ["mm01-train", "--config=tiny"]
    for place in ("file", "file/below", "broken", "loop.json", "x" * 300, "pipe.py"):
        yield f"workdir {place[:20]}", [*train, f"--workdir={{room}}/in/{place}"]
    for place in ("nowhere", "file", "broken", "loop.json", "x" * 300, "empty", "pipe.py"):
        checkpoint = f"{{room}}/in/{place}"
        yield f"generate from {place[:20]}", ["mm01-generate", f"--checkpoint={checkpoint}", "--prompt=a"]
        yield f"evaluate {place[:20]}", ["mm01-eval", "perplexity", f"--checkpoint={checkpoint}"]
        yield f"inspect {place[:20]}", ["mm01-convert", "inspect", f"--source={checkpoint}"]


def _of_flags(name: str, task: str | None) -> Iterator[tuple[str, list[str]]]:
    """What can be wrong with the flags of a command, each beside those that it needs."""
    flags, words = flags_of(COMMANDS[name], task), [task] if task else []
    needed = [f"{flag.typed}={_example(flag)}" for flag in flags if flag.required]

    def line(title: str, *typed: str) -> tuple[str, list[str]]:
        rest = [given for given in needed if not any(t.startswith(given.partition("=")[0]) for t in typed)]
        return f"{name} {task or ''} {title}"[:60], [name, *words, *rest, *typed]

    yield line("surplus word", "surplus")
    yield line("-- and a word", "--", "surplus")
    yield line("three dashes", f"-{flags[0].typed}=x")
    yield line("no flag", "--=x")
    yield line("of absl", "--flagfile=/etc/passwd")
    yield f"{name} with two tasks" if task else f"{name} alone", [name, *words, *words, "again"]
    for flag in flags:
        yield line(f"{flag.name} mistyped", f"{flag.typed[:-1]}{flag.typed[-1] * 3}=1")
        yield line(f"{flag.name} twice", *[flag.typed + ("" if flag.kind is bool else f"={_example(flag)}")] * 2)
        if flag.kind is bool:
            yield line(f"{flag.name} perhaps", f"{flag.typed}=perhaps")
        else:
            yield line(f"{flag.name} bare", flag.typed)
            yield line(f"{flag.name} empty", f"{flag.typed}=")
        if flag.kind in (int, float):
            yield from (line(f"{flag.name}={value[:9]}", f"{flag.typed}={value}") for value in _NO_NUMBER)
        if isinstance(flag.kind, tuple):
            yield from (line(f"{flag.name}={value!r}", f"{flag.typed}={value}") for value in _NO_CHOICE)


def _example(flag: Flag) -> str:
    return flag.kind[0] if isinstance(flag.kind, tuple) else str(flag.least or 1) if flag.kind in (int, float) else "x"


def lay_out(folder: pathlib.Path) -> None:
    """The files that the cases name."""
    for name, text in _FILES.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    for name in ("huge.json", "huge.py"):
        with open(folder / name, "wb") as file:
            file.truncate(HUGE)  # of zeros, and without a block on the disk
    for name in ("folder.py", "empty"):
        (folder / name).mkdir()
    os.mkfifo(folder / "pipe.py")
    (folder / "file").write_text("")
    (folder / "broken").symlink_to(folder / "nowhere")
    (folder / "loop.json").symlink_to(folder / "loop.json")


def run(typed: str) -> int:
    """Types a line (JSON) at its command in this process; 99 where it takes too long."""
    name, *argv = json.loads(typed)
    start = time.process_time()
    code = MAINS[name](argv)
    taken = time.process_time() - start
    if taken > SECONDS:
        print(f"{taken:.1f} s of CPU; allowed: {SECONDS}")
        return 99
    return code


def spread(titles: list[str], seed: int = 0) -> list[str]:
    """The titles in an order in which every tenth is a sample of all."""
    return random.Random(seed).sample(titles, len(titles))
