"""What a run writes down while it goes: `metrics.jsonl`, and TensorBoard if its extra is installed."""

import importlib.util
import json
import os
import pathlib
from typing import Any

import numpy as np


class MetricsLog:
    """Appends one JSON object a line to `workdir`/metrics.jsonl.

    Opening it drops the lines of steps after `resumed_step` and a line cut short by a kill, so that every step
    occurs once however often the run was interrupted.

    tensorboard: writes files for TensorBoard too, where its extra is installed.
    """

    def __init__(self, workdir: pathlib.Path, resumed_step: int, *, tensorboard: bool):
        path = workdir / "metrics.jsonl"
        records = [record for record in read_metrics(workdir) if record["step"] <= resumed_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
        os.replace(temporary, path)
        self._file = path.open("a")
        self._board = None
        if tensorboard and importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=resumed_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """`record` has `step`, floats, and lists of floats; TensorBoard shows the latter's distribution."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in record.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, record["step"])
                elif isinstance(value, list):
                    self._board.add_histogram(name, np.ravel(value), record["step"])

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl in order; a half-written last line is left out."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines if line]
