"""What a run says while it goes: `metrics.jsonl`, one progress line, TensorBoard if its extra is installed."""

import importlib.util
import json
import os
import pathlib
import sys
import time
from typing import Any, TextIO


class MetricsLog:
    """Appends one JSON object a line to `workdir`/metrics.jsonl.

    Opening it drops the lines of steps after `resumed_step` and a line cut short by a kill, so that every step
    occurs once however often the run was interrupted.
    """

    def __init__(self, workdir: pathlib.Path, resumed_step: int):
        path = workdir / "metrics.jsonl"
        kept = [record for record in read_metrics(workdir) if record["step"] <= resumed_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(temporary, path)
        self._file = path.open("a")
        self._board = None
        if importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=resumed_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """`record` has `step` and floats; lists go to the file only."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in record.items():
                if name != "step" and isinstance(value, float):
                    self._board.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl in order; a half-written last line is left out."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines if line]


class Progress:
    """One line: rewritten in place on a terminal, repeated every few seconds elsewhere."""

    SECONDS = 5.0

    def __init__(self, first_step: int, steps: int, out: TextIO | None = None):
        self.first, self.steps, self.out = first_step, steps, sys.stdout if out is None else out
        self.began = self.shown = time.monotonic()
        self.open = False

    def show(self, step: int, text: str) -> None:
        """Called after every step; `text` is what to say besides step and remaining time."""
        now = time.monotonic()
        terminal = self.out.isatty()
        first, last = step == self.first + 1, step == self.steps
        if not (terminal or first or last or now - self.shown >= self.SECONDS):
            return
        self.shown = now
        if first:
            self.began = now  # the first step is mostly compilation
            remaining = ""
        else:
            seconds = (now - self.began) / (step - self.first - 1) * (self.steps - step)
            remaining = f"  {clock(seconds)} left"
        line = f"step {step}/{self.steps}  {text}{remaining}"
        self.out.write(f"\r{line}\033[K" if terminal else f"{line}\n")
        self.out.flush()
        self.open = terminal

    def log(self, text: str) -> None:
        """A message of its own line."""
        self.out.write(("\n" if self.open else "") + text + "\n")
        self.out.flush()
        self.open = False


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
