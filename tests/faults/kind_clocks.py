"""A clock that jumps while a command works (`clock.c`): corrected, set by hand, or of a machine that was suspended."""

import pathlib
from typing import NamedTuple

from tests.faults import disk
from tests.faults.world import noise, world

WORDS = "a clock that jumps changes no loss, no weight and no text, and nothing waits for it"
EVERY = 8
HOUR, DAY, YEAR = 3600, 86_400, 31_557_600
MOST_SECONDS = 240.0  # a command takes a few, on a machine that does other things as well


class Jump(NamedTuple):
    """after: seconds after the command's start, by which its clock jumps."""

    command: str
    after: float
    seconds: int


MEMBERS = {
    "generating, back a day": Jump("generate", 2.0, -DAY),
    "training, on an hour": Jump("train", 6.0, HOUR),
    "training, back a day": Jump("train", 6.0, -DAY),
    "training, to before 1970": Jump("train", 7.0, -60 * YEAR),
    "training, beyond 2106": Jump("train", 5.0, 90 * YEAR),
    "training, while it imports, back an hour": Jump("train", 0.5, -HOUR),
    "generating, beyond 2038": Jump("generate", 2.0, 20 * YEAR),
    "evaluating, back a day": Jump("eval", 3.0, -DAY),
}


def judge(jump: Jump, room: pathlib.Path) -> str | None:
    if disk.compiler() is None:
        return None  # nothing can be tried without one
    made = world()
    checkpoint = f"--checkpoint={made.checkpoint}"
    argv = {
        "train": made.train(room / "run"),
        "generate": ["mm01_jax.inference", checkpoint, "--prompt=def ", "--temperature=0", "--max-tokens=600"],
        "eval": ["mm01_jax.evals", "perplexity", checkpoint, f"--source={made.runs.folder / 'text'}"],
    }[jump.command]
    log = room / "log"
    code = made.start(argv, log, disk.jumping(jump.after, jump.seconds)).wait(timeout=MOST_SECONDS)
    said = log.read_text(errors="replace")
    if code or noise(said):
        return f"exit {code}: {said[-900:]}"
    if jump.command == "train":
        runs, name = made.runs, str(room / "run")
        same = runs.losses(name) == runs.losses("whole") and runs.digest(name) == runs.digest("whole")
        return None if same else f"another run than with a clock that goes on: {said[-600:]}"
    alone = room / "alone"
    if made.start(argv, alone).wait(timeout=MOST_SECONDS):
        return alone.read_text()[-900:]
    result = [text.splitlines()[-1:] if jump.command == "eval" else text for text in (said, alone.read_text())]
    return None if result[0] == result[1] else f"says {result[0]}, without a jump {result[1]}"
