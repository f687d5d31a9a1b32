"""Kills of whole commands at random moments: training, converting, generating."""

import json
import pathlib
import random
import time
from typing import NamedTuple

from tests.faults.train_faults import Runs, kill_and_resume
from tests.faults.world import World, noise, world

WORDS = "after SIGKILL the same command ends with what it would have made alone, bit for bit"
EVERY = 20
STEPS = 60


class Kill(NamedTuple):
    """seed: of the moment."""

    command: str
    seed: int


MEMBERS = {
    f"{command} {seed}": Kill(command, seed)
    for command, count in (("from-torch", 3), ("generate", 3), ("train", 14))
    for seed in range(count)
}


def judge(kill: Kill, room: pathlib.Path) -> str | None:
    if kill.command == "train":
        return _train(kill, room)
    made, log = world(), room / "log"
    argv, target = _argv(kill.command, made, room)
    process = made.start(argv, log)
    time.sleep(random.Random(kill.seed).uniform(0.5, 8.0))
    process.kill()
    process.wait()
    if target.exists() and kill.command == "from-torch":  # it was done
        return None
    if made.start(argv, log).wait(timeout=300):
        return log.read_text()[-900:]
    whole, _ = _argv(kill.command, made, room / "whole")
    (room / "whole").mkdir()
    if made.start(whole, log).wait(timeout=300):
        return log.read_text()[-900:]
    alone = room / "whole" / target.name
    return noise(log.read_text()) or (None if _content(target) == _content(alone) else "another result than alone")


def _train(kill: Kill, room: pathlib.Path) -> str | None:
    made = world()
    runs = Runs(room / "runs", STEPS, 2, cache=made.runs.environment["JAX_COMPILATION_CACHE_DIR"])
    rows, equal = kill_and_resume(runs, 1, kill.seed)
    said = "".join(runs.said(name) for name in ("whole", "killed"))
    return noise(said) or (None if equal else f"{[row.row() for row in rows]}: {said[-600:]}")


def _argv(command: str, made: World, folder: pathlib.Path) -> tuple[list[str], pathlib.Path]:
    """(what is typed, what it makes)."""
    if command == "from-torch":
        return [
            "mm01_jax.convert",
            "from-torch",
            f"--source={made.torch}",
            f"--target={folder / 'made'}",
        ], folder / "made"
    out = folder / "answers.jsonl"
    asked = [f"--prompts={made.asked}", f"--out={out}", "--batch=1", "--max-tokens=64"]
    return ["mm01_jax.inference", f"--checkpoint={made.checkpoint}", *asked], out


def _content(made: pathlib.Path) -> str:
    if made.is_file():
        return made.read_text()
    manifest = made / "state" / "manifest.json"
    return json.loads("{" + manifest.read_text().partition("\n")[2])["tree_sha256"]
