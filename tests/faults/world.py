"""A small run, made once, and commands on it as processes of their own: what signals, full disks and kills befall."""

import atexit
import functools
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from tests.faults.train_faults import ROOT, Runs

STEPS, EVERY = 12, 3
# What only a bug, or a library that nobody has told, prints.
NOISE = ("Traceback", "stack trace", "Exception ignored", "Fatal Python error", "core dumped", "terminate called")


class World(NamedTuple):
    """runs: with one of `STEPS` steps that has ended, `whole`. torch: it as a PyTorch directory."""

    runs: Runs
    torch: pathlib.Path
    asked: pathlib.Path

    @property
    def checkpoint(self) -> pathlib.Path:
        return self.runs.folder / "whole"

    def start(self, argv: list[str], log: pathlib.Path, environment: dict[str, str] | None = None) -> subprocess.Popen:
        """`python -m mm01_jax.ROOM ...`; what it says, on stdout and stderr, is added to `log`."""
        with open(log, "a") as file:
            return subprocess.Popen(
                [sys.executable, "-m", *argv],
                cwd=ROOT,
                env=self.runs.environment | (environment or {}),
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def train(self, workdir: pathlib.Path, *more: str, steps: int = STEPS) -> list[str]:
        """What trains `steps` steps in a folder."""
        config = [f"--config={self.runs.config}", f"--workdir={workdir}", f"--config.train.steps={steps}"]
        return ["mm01_jax.train", *config, *more]


@functools.cache
def world() -> World:
    """Made where it is first asked for, removed when this process ends."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fault-world-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    runs = Runs(folder / "runs", STEPS, EVERY)
    runs.finish("whole")
    asked = folder / "asked.jsonl"
    asked.write_text("".join(f'{{"prompt": "line {number} "}}\n' for number in range(6)))
    made = World(runs, folder / "torch", asked)
    log = folder / "torch.log"
    argv = ["mm01_jax.convert", "to-torch", f"--source={made.checkpoint}", f"--target={made.torch}"]
    if made.start(argv, log).wait(timeout=600):
        raise RuntimeError(log.read_text())
    return made


def wait_for(text: str, log: pathlib.Path, process: subprocess.Popen, seconds: float = 300.0) -> bool:
    """Whether a process says a text before it ends."""
    deadline = time.monotonic() + seconds
    while text not in _said(log):
        if process.poll() is not None or time.monotonic() > deadline:
            return text in _said(log)
        time.sleep(0.005)
    return True


def _said(log: pathlib.Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def noise(said: str) -> str | None:
    """What is in a text that no command may say."""
    return next((f"it said {word!r}: {said[-800:]}" for word in NOISE if word in said), None)
