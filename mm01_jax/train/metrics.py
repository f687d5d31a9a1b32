"""What a run writes down while it goes: `metrics.jsonl`, and TensorBoard if its extra is installed.

The checkpoints are the run; this is what it says of itself. A line that cannot be read or written is named and the run
goes on.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mm01_jax import files
from mm01_jax.messages import say
from mm01_jax.train import metrics_file

_MOST_WAITING = 2**24  # characters that wait for room on the disk
_BINS = 30  # of a histogram


class MetricsLog:
    """Appends one JSON object a line to `workdir`/metrics.jsonl.

    Opening it cuts off the lines of steps after `resumed_step` and one cut short by a kill, so that every step occurs
    once however often the run was interrupted.

    Args:
      tensorboard: writes files for TensorBoard too, where its extra is installed.
      log: told of what cannot be read or written.
    """

    def __init__(
        self, workdir: pathlib.Path, resumed_step: int, *, tensorboard: bool, log: Callable[[str], None] = say
    ):
        self._path, self._log = workdir / metrics_file.NAME, log
        self._waiting: list[str] = []  # lines that the disk has not taken
        self._length = 0  # bytes of whole lines on disk
        self._failing = False
        self._board = None
        try:
            self._length = metrics_file.cut(self._path, resumed_step, log)
        except OSError as error:
            self._say_failing(error)
            self._length = self._path.stat().st_size if self._path.is_file() else 0
        if tensorboard and importlib.util.find_spec("tensorboardX"):
            self._on_board(self._open_board, workdir, resumed_step)

    def write(self, record: dict[str, Any]) -> None:
        """`record` has `step`, floats, and lists of floats; TensorBoard shows the latter's distribution."""
        self._waiting.append(json.dumps(record) + "\n")
        self._flush()
        if self._board is not None:
            self._on_board(self._add_to_board, record)

    def close(self) -> None:
        """The last try for what waits."""
        self._flush()
        if self._waiting:
            self._log(f"{self._path}: {len(self._waiting)} lines are not written")
        if self._board is not None:
            self._on_board(self._board.close)

    def _flush(self) -> None:
        """Appends what waits, after cutting off what a full disk left of a line."""
        data = "".join(self._waiting).encode()
        if not data:
            return
        try:
            with os.fdopen(files.update(self._path, os.O_APPEND), "ab") as file:
                self._length = min(self._length, os.fstat(file.fileno()).st_size)  # somebody may have removed it
                file.truncate(self._length)
                file.write(data)
        except OSError as error:
            self._say_failing(error)
            while sum(map(len, self._waiting)) > _MOST_WAITING:
                self._waiting.pop(0)
            return
        if self._failing:
            self._log(f"{self._path}: written again")
        self._failing, self._waiting, self._length = False, [], self._length + len(data)

    def _say_failing(self, error: OSError) -> None:
        if not self._failing:
            self._log(f"{self._path}: {error.strerror}; training goes on, its lines wait until they can be written")
        self._failing = True

    def _open_board(self, workdir: pathlib.Path, resumed_step: int) -> None:
        # Its SummaryWriter is a thread more, which ends with a traceback where the disk is full or the clock jumps.
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter

        folder = files.Door(ValueError).folder(workdir / "tensorboard")
        self._board = RecordWriter(str(folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"))
        self._to_board(file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._to_board(step=resumed_step + 1, session_log=start)  # it hides what was written of later steps

    def _to_board(self, **event: Any) -> None:
        from tensorboardX.proto import event_pb2

        self._board.write(event_pb2.Event(wall_time=time.time(), **event).SerializeToString())

    def _add_to_board(self, record: dict[str, Any]) -> None:
        from tensorboardX import summary

        for name, value in record.items():
            if isinstance(value, float):
                shown = summary.scalar(name, value)
            elif isinstance(value, list) and np.isfinite(value).all():  # a histogram of NaN is an error there
                shown = summary.histogram(name, np.ravel(value), _BINS)
            else:
                continue
            self._to_board(step=record["step"], summary=shown)
        self._board.flush()

    def _on_board(self, act: Callable, *given) -> None:
        try:
            act(*given)
        except (OSError, ValueError, AttributeError, ImportError) as error:  # of another version of it
            with contextlib.suppress(OSError, AttributeError):
                self._board.close()
            self._board = None
            folder = f"{self._path.parent / 'tensorboard'}: "
            self._log(f"{folder}{str(error).removeprefix(folder)}; nothing more is written there")
