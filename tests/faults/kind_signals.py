"""Signals at moments of every command: training saves or ends, the others end, all in a line and with their code."""

import pathlib
import signal
import subprocess
import time
from typing import NamedTuple

from mm01_jax.checkpoint import Checkpoint
from tests.faults.world import World, noise, wait_for, world

WORDS = "a signal saves a run that steps and ends every other command, within 30 s and without a traceback"
EVERY = 24
MOST_SECONDS = 30.0
INT, TERM, HUP, USR1, USR2 = (getattr(signal, f"SIG{name}") for name in ("INT", "TERM", "HUP", "USR1", "USR2"))
SAVED = 75


class Moment(NamedTuple):
    """argv: of a kind of `_argv`. after: a text that is waited for, and seconds from then on. codes: that may come."""

    command: str
    after: str
    seconds: float
    signals: tuple[signal.Signals, ...]
    codes: tuple[int, ...]
    platform: str = "cpu"


def _died(number: signal.Signals) -> int:
    return 128 + number


_COMPILES, _STEPS, _REPORTS = "compiling the first step", "step 3/", "held-out loss"
MEMBERS = {
    "training, Python starts, Ctrl-C": Moment("train", "", 0.5, (INT,), (_died(INT), -INT)),
    "training, steps, SIGTERM": Moment("train", "step 1/", 1.0, (TERM,), (SAVED,)),
    "training, imports, SIGTERM": Moment("train", "", 0.6, (TERM,), (_died(TERM), -TERM)),
    "training, imports, SIGHUP": Moment("train", "", 1.2, (HUP,), (_died(HUP), -HUP)),
    "training, imports, Ctrl-C": Moment("train", "", 1.8, (INT,), (_died(INT),)),
    "training, compiles, Ctrl-C": Moment("train", _COMPILES, 0.3, (INT,), (SAVED, _died(INT))),
    "training, compiles, SIGTERM": Moment("train", _COMPILES, 0.3, (TERM,), (SAVED, _died(TERM))),
    "training, compiles, SIGHUP": Moment("train", _COMPILES, 0.6, (HUP,), (SAVED, _died(HUP))),
    "training, compiles, Ctrl-C twice": Moment("train", _COMPILES, 0.4, (INT, INT), (_died(INT),)),
    "training, steps, SIGHUP": Moment("train", "step 1/", 0.5, (HUP,), (SAVED,)),
    "training, steps, Ctrl-C": Moment("train", "step 1/", 0.7, (INT,), (SAVED,)),
    "training, steps, SIGUSR1": Moment("train", "step 1/", 0.7, (USR1,), (SAVED,)),
    "generating, decodes, Ctrl-C": Moment("generate", "q1q ", 1.0, (INT,), (_died(INT),)),
    "training, steps, SIGUSR2": Moment("train", "step 1/", 0.6, (USR2,), (SAVED,)),
    "training, steps, SIGTERM twice": Moment("train", "step 1/", 0.6, (TERM, TERM), (SAVED,)),
    "training, SIGHUP under nohup": Moment("nohup", "step 1/", 0.1, (HUP,), (0,)),
    "training, last report, Ctrl-C": Moment("short", _REPORTS, 0.05, (INT,), (_died(INT), 0)),
    "generating, imports, Ctrl-C": Moment("generate", "", 0.7, (INT,), (_died(INT),)),
    "generating, loads, SIGTERM": Moment("generate", "", 3.0, (TERM,), (_died(TERM),), platform=""),
    "generating, decodes, SIGHUP": Moment("generate", "q1q ", 0.5, (HUP,), (_died(HUP),)),
    "evaluating, SIGTERM": Moment("eval", "step 1/", 0.5, (TERM,), (_died(TERM),), platform=""),
    "evaluating, Ctrl-C": Moment("eval", "step 1/", 0.5, (INT,), (_died(INT),)),
    "converting, imports, SIGTERM": Moment("convert", "", 1.0, (TERM,), (_died(TERM), -TERM)),
    "converting, Ctrl-C": Moment("convert", "", 2.2, (INT,), (_died(INT), 0)),
}


def _argv(command: str, made: World, room: pathlib.Path) -> list[str]:
    checkpoint = f"--checkpoint={made.checkpoint}"
    return {
        "train": made.train(room / "run", "--save-on=USR1,usr2", steps=10**6),
        "nohup": made.train(room / "run"),
        "short": made.train(room / "run", steps=2),
        "generate": ["mm01_jax.inference", checkpoint, "--prompt=q1q ", "--max-tokens=20000", "--temperature=0"],
        "eval": ["mm01_jax.evals", "perplexity", checkpoint, f"--source={made.runs.folder / 'text'}"],
        "convert": ["mm01_jax.convert", "from-torch", f"--source={made.torch}", f"--target={room / 'made'}"],
    }[command]


def judge(moment: Moment, room: pathlib.Path) -> str | None:
    made, log = world(), room / "log"
    # A process inherits what is ignored, as it is for a job in the background.
    hang_up = signal.SIG_IGN if moment.command == "nohup" else signal.SIG_DFL
    before = [(number, signal.signal(number, handler)) for number, handler in ((HUP, hang_up), (INT, signal.SIG_DFL))]
    try:
        process = made.start(_argv(moment.command, made, room), log, {"JAX_PLATFORMS": moment.platform})
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    try:
        if not wait_for(moment.after, log, process):
            return f"{moment.after!r} never came: {log.read_text()[-800:]}"
        time.sleep(moment.seconds)
        for number in moment.signals:
            process.send_signal(number)
            time.sleep(0.2)
        code = process.wait(timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        return f"not ended after {MOST_SECONDS} s: {log.read_text()[-800:]}"
    finally:
        process.kill()
        process.wait()
    said = log.read_text(errors="replace")
    if code not in moment.codes:
        return f"exit {code}, allowed: {moment.codes}: {said[-800:]}"
    return noise(said) or (_unsaved(room / "run", said) if code == SAVED else None)


def _unsaved(workdir: pathlib.Path, said: str) -> str | None:
    """What is wrong with the step that a run says it has saved."""
    steps = sorted(workdir.glob("checkpoints/[0-9]*"))
    if not steps or f"step {int(steps[-1].name)} is saved" not in said:
        return f"saved {[step.name for step in steps]}, said {said[-300:]}"
    found = Checkpoint(steps[-1])
    for path in found.leaves:
        for index in [(0,) * found.leaves[path].stack]:
            found.read(path, index)
    return None
