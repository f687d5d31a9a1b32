"""Several processes of one job, one of which dies, stalls or is ended: the others do not wait for it for ever."""

import pathlib
import signal
import subprocess
import threading
import time
from typing import NamedTuple

from tests.faults.world import World, world
from tests.parallel.test_processes import launch

WORDS = "where one of several processes dies, stalls or is ended, the others end within a minute with its name"
EVERY = None  # each is two processes that compile
MOST_SECONDS = 60.0
START_SECONDS = 600.0
INT, TERM, KILL, STOP = signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP
GONE, SAVED = 69, 75


class Fate(NamedTuple):
    """Of process `who`, when `after` has been said. mine: codes that it may end with; theirs: that the other may."""

    command: str
    after: str
    number: signal.Signals
    who: int
    mine: tuple[int, ...]
    theirs: tuple[int, ...] = (GONE,)


MEMBERS = {
    "generating, the second is terminated": Fate("generate", "q1q", TERM, 1, (128 + TERM,)),
    "generating, the first is terminated": Fate("generate", "q1q", TERM, 0, (128 + TERM,)),
    "generating, the second is interrupted": Fate("generate", "q1q", INT, 1, (128 + INT,)),
    "generating, the second is killed": Fate("generate", "q1q", KILL, 1, (-KILL,)),
    "generating, the first is killed": Fate("generate", "q1q", KILL, 0, (-KILL,)),
    "generating, the second stalls": Fate("generate", "q1q", STOP, 1, (-KILL,)),
    "evaluating, the second is terminated": Fate("eval", "[Gloo] Rank", TERM, 1, (128 + TERM,)),
    "training, the second is killed": Fate("train", "step 1/", KILL, 1, (-KILL,)),
    "training, the first is killed": Fate("train", "step 1/", KILL, 0, (-KILL,)),
    "training, the second stalls": Fate("train", "step 1/", STOP, 1, (-KILL,)),
    "training, the first stalls": Fate("train", "step 1/", STOP, 0, (-KILL,)),
    "training, the second is terminated": Fate("train", "step 1/", TERM, 1, (SAVED,), (SAVED,)),
    "training, the first is hung up": Fate("train", "step 1/", signal.SIGHUP, 0, (SAVED,), (SAVED,)),
}


def _argv(command: str, made: World, room: pathlib.Path) -> list[str]:
    checkpoint = f"--checkpoint={made.checkpoint}"
    return {
        "generate": ["mm01_jax.inference", checkpoint, "--prompt=q1q", "--max-tokens=200000", "--mesh=auto"],
        "eval": ["mm01_jax.evals", "perplexity", checkpoint, f"--source={made.runs.folder / 'text'}", "--mesh=auto"],
        "train": made.train(room / "run", "--config.mesh.data=2", steps=10**6),
    }[command]


def judge(fate: Fate, room: pathlib.Path) -> str | None:
    running = launch(["-m", *_argv(fate.command, world(), room)], processes=2, devices=2)
    said: list[list[str]] = [[] for _ in running]
    readers = [
        threading.Thread(target=lines.extend, args=(process.stdout,))
        for lines, process in zip(said, running, strict=True)
    ]
    for reader in readers:
        reader.start()
    try:
        problem = _befall(fate, running, said)
    finally:
        for process in running:
            process.kill()
        for reader, process in zip(readers, running, strict=True):
            reader.join()
            process.wait()
            process.stdout.close()
    codes = [process.returncode for process in running]
    return problem or _broken(fate, codes, ["".join(lines) for lines in said])


def _befall(fate: Fate, running: list[subprocess.Popen], said: list[list[str]]) -> str | None:
    """Sends the signal; what is wrong with how long the processes took."""
    deadline = time.monotonic() + START_SECONDS
    while not any(fate.after in line for line in said[0]):
        if time.monotonic() > deadline or any(process.poll() is not None for process in running):
            return f"{fate.after!r} never came: {said}"
        time.sleep(0.05)
    time.sleep(1.0)
    running[fate.who].send_signal(fate.number)
    waited_for = [running[1 - fate.who]] if fate.number == STOP else running
    try:
        for process in waited_for:
            process.wait(timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        return f"{[process.poll() for process in running]} after {MOST_SECONDS} s: {said}"
    return None


def _broken(fate: Fate, codes: list[int], said: list[str]) -> str | None:
    mine, theirs = codes[fate.who], codes[1 - fate.who]
    if mine not in fate.mine or theirs not in fate.theirs:
        return f"exit {mine} and {theirs}, allowed: {fate.mine} and {fate.theirs}: {said}"
    if "Traceback" in said[0] + said[1]:
        return f"says where a bug would be: {said}"
    named = f"process {fate.who} of this job"
    return None if theirs == SAVED or named in said[1 - fate.who] else f"no process is named: {said}"
