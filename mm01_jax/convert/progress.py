"""What a conversion will do, before it does it, and how far it is."""

import dataclasses
import pathlib
import shutil
import sys
import threading
import time

from mm01_jax.convert import parallel
from mm01_jax.progress import clock

_EVERY_SECONDS = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Tensors and bytes of a conversion; `notes` say what happens to what is not simply carried over."""

    tensors: int
    bytes_in: int
    bytes_out: int
    bytes_done: int  # of bytes_out, on disk from an interrupted run
    target: pathlib.Path
    notes: tuple[str, ...] = ()

    @property
    def needed(self) -> int:
        """Disk still to be filled; 2 % stand for file systems' and formats' own."""
        return int((self.bytes_out - self.bytes_done) * 1.02)

    @property
    def free(self) -> int:
        """Bytes free where the target will lie."""
        place = self.target.absolute()
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    def __str__(self) -> str:
        lines = [
            f"{self.tensors:,} tensors, {gigabytes(self.bytes_in)} in, {gigabytes(self.bytes_out)} out",
            f"disk: {gigabytes(self.needed)} needed, {gigabytes(self.free)} free at {self.target}",
            *self.notes,
        ]
        if self.bytes_done:
            lines.append(f"resumes: {gigabytes(self.bytes_done)} are there and will be verified")
        return "\n".join(lines)

    def check_room(self) -> None:
        """Raises ValueError when the disk cannot hold the result."""
        if self.needed > self.free:
            what = f"{gigabytes(self.needed)} needed, {gigabytes(self.free)} free"
            raise ValueError(f"target={self.target}: {what}; choose another disk")


class Progress:
    """Bytes done, bytes per second and time left, on stderr every two seconds; safe from several threads."""

    def __init__(self, total: int, what: str):
        self._total, self._what = total, what
        self._done = 0
        self._start = self._said = time.monotonic()
        self._lock = threading.Lock()

    def start(self, name: str, nbytes: int) -> None:
        """Names a tensor that takes long enough for silence to look like a hang."""
        if nbytes >= parallel.BIG_BYTES:
            print(f"{self._what}: {name}, {gigabytes(nbytes)}, worked on alone", file=sys.stderr, flush=True)

    def add(self, nbytes: int) -> None:
        """Counts bytes as done."""
        with self._lock:
            self._done += nbytes
            now = time.monotonic()
            if now - self._said >= _EVERY_SECONDS:
                self._said = now
                print(self._line(now), file=sys.stderr, flush=True)

    def finish(self) -> str:
        """The last line: bytes, seconds, bytes/s."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = gigabytes(self._done / seconds)
        return f"{self._what}: {gigabytes(self._done)} in {seconds:.1f} s, {rate}/s"

    def _line(self, now: float) -> str:
        rate = self._done / (now - self._start)
        left = (self._total - self._done) / rate if rate else float("inf")
        return (
            f"{self._what}: {gigabytes(self._done)} of {gigabytes(self._total)}, {gigabytes(rate)}/s, "
            f"{clock(left)} left"
        )


def gigabytes(nbytes: float) -> str:
    """Bytes as people write them: 90.7 GB, 12.3 MB, 40 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes:.0f} bytes"
