"""A disk that fills up, or breaks, while a command writes or reads (`disk.c`)."""

import errno
import pathlib
from typing import NamedTuple

from mm01_jax.checkpoint import Checkpoint
from tests.faults import disk
from tests.faults.world import World, noise, world

WORDS = "a full or broken disk ends a command with its code, names a file, and leaves what was there; it goes on later"
EVERY = 17
FULL, BROKEN = errno.ENOSPC, errno.EIO
DISK, BAD = 74, 3


class Moment(NamedTuple):
    """after: bytes that the disk takes, or gives, before it fails. codes: that may come."""

    command: str
    after: int
    codes: tuple[int, ...] = (DISK,)
    error: int = FULL
    of: str = "write"


MEMBERS = {  # a training run tries 4,096 bytes first
    "converting to PyTorch, in a shard": Moment("to-torch", 20_000),
    "training, no byte": Moment("train", 0),
    "generating, in an answer": Moment("generate", 200),
    "training, the lock alone": Moment("train", 4_700),
    "training, the first lines of metrics": Moment("train", 12_000),
    "training, in the first save": Moment("train", 60_000),
    "training, in a later save": Moment("train", 700_000, (DISK, 0)),
    "training, the last report": Moment("train", 1_200_000, (DISK, 0)),
    "training, that resumes": Moment("resume", 40_000),
    "converting from PyTorch, no byte": Moment("from-torch", 0),
    "converting from PyTorch, in an array": Moment("from-torch", 30_000),
    "converting to PyTorch, no byte": Moment("to-torch", 0),
    "generating, no byte": Moment("generate", 0),
    "training, writing breaks": Moment("train", 60_000, error=BROKEN),
    "resuming, reading breaks": Moment("resume", 20_000, (BAD, DISK), BROKEN, "read"),
    "generating, reading breaks": Moment("from-run", 5_000, (BAD, DISK), BROKEN, "read"),
    "converting, reading breaks": Moment("of-torch", 10_000, (BAD, DISK), BROKEN, "read"),
    "tokenizing, in a shard": Moment("tokenize", 30_000),
    "tokenizing, no byte": Moment("tokenize", 0),
    "tokenizing, in the index": Moment("tokenize", 131_100),
    "tokenizing, writing breaks": Moment("tokenize", 70_000, error=BROKEN),
}


def _prepared(command: str, made: World, room: pathlib.Path) -> tuple[list[str], pathlib.Path]:
    """(what is typed, the folder whose disk fails)."""
    folder = room / "disk"
    folder.mkdir()
    torch = f"--source={made.torch}"
    if command == "resume" and made.start(made.train(folder / "run", steps=5), room / "before").wait(timeout=600):
        raise RuntimeError((room / "before").read_text())
    if command == "from-run":
        return [
            "mm01_jax.inference",
            f"--checkpoint={made.checkpoint}",
            "--prompt=a",
            "--max-tokens=4",
        ], made.checkpoint
    if command == "tokenize":
        (room / "text.txt").write_text("a tale of two cities " * 2000)
        flags = [f"--source={room / 'text.txt'}", "--tokenizer=bytes", f"--out={folder / 'tokens'}", "--workers=1"]
        return ["mm01_jax.data.tokenize", *flags], folder
    if command == "of-torch":
        return ["mm01_jax.convert", "from-torch", torch, f"--target={room / 'made'}"], made.torch
    return {
        "train": made.train(folder / "run"),
        "resume": made.train(folder / "run"),
        "from-torch": ["mm01_jax.convert", "from-torch", torch, f"--target={folder / 'made'}"],
        "to-torch": ["mm01_jax.convert", "to-torch", f"--source={made.checkpoint}", f"--target={folder / 'made'}"],
        "generate": [
            "mm01_jax.inference",
            f"--checkpoint={made.checkpoint}",
            f"--prompts={made.asked}",
            f"--out={folder / 'answers.jsonl'}",
            "--batch=2",
            "--max-tokens=8",
        ],
    }[command], folder


def judge(moment: Moment, room: pathlib.Path) -> str | None:
    if disk.compiler() is None:
        return None  # nothing can be tried without one
    made, log = world(), room / "log"
    argv, folder = _prepared(moment.command, made, room)
    fault = disk.environment(folder, moment.after, error=moment.error, of=moment.of)
    code = made.start(argv, log, fault).wait(timeout=300)
    said = log.read_text(errors="replace")
    if code not in moment.codes:
        return f"exit {code}, allowed: {moment.codes}: {said[-900:]}"
    if problem := noise(said):
        return problem
    if code and str(folder) not in said.splitlines()[-1] and str(folder) not in "\n".join(said.splitlines()[-3:]):
        return f"no file is named: {said[-600:]}"
    for step in folder.glob("run/checkpoints/[0-9]*"):
        Checkpoint(step)  # sound, or not there
    if code and made.start(argv, room / "again").wait(timeout=300):
        return f"afterwards: {(room / 'again').read_text()[-900:]}"
    return None
