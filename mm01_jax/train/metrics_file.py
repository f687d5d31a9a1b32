"""The lines of `metrics.jsonl`: where a step ends in it, all of them, or as many as a picture needs.

The file of a long run has gigabytes. Steps ascend, so a step's end is found by halving; of a long file a picture takes
records at even places and the last ones. Damaged lines are left out, and named to whoever asks for the records.
"""

import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from mm01_jax import files

NAME = "metrics.jsonl"
_NAMED = 5  # of many damaged lines
_MOST_LINE, _MOST_LISTS = 2**22, 2**12  # bytes of one line, the longest of layers x experts numbers; a list a layer
_MOST_FOREIGN = 2**9  # bytes of a line that begins otherwise and is read for its step
_DAMAGED = 1000  # lines looked at from one place for one that is whole
_WHOLE = 2**21  # bytes of a file, or of its end, whose every record a picture takes
_PLACES, _PIECE = 2000, 2**20  # of a picture, in what is before, and bytes looked at from each
_LOOKED_AT = 2**25  # bytes of all records there: where lines are long, places are fewer
_STEP = re.compile(rb'\{"step": ([0-9]{1,18})[,}]')  # how `MetricsLog` begins a line
_LONG = re.compile(rb"[0-9]{40}")  # digits, whose number takes the square of their time
_HELD_OUT = b'"held_out_loss"'


def cut(path: pathlib.Path, step: int, log: Callable[[str], None]) -> int:
    """Leaves in the file, made where there is none, the lines up to a step; returns their bytes. A link is replaced.

    Raises:
      OSError: it cannot be written.
    """
    if not _is_regular(path, log):
        files.write(path, b"")
        return 0
    with os.fdopen(files.update(path), "r+b") as file:
        length = _end(file, step)
        file.truncate(length)
    return length


def _end(file: BinaryIO, step: int) -> int:
    """The bytes of the lines up to a step."""
    low, high = 0, os.fstat(file.fileno()).st_size
    while low < high:
        middle = (low + high) // 2
        end, found = _step_from(file, middle)
        if found is None or found > step:
            high = middle
        else:
            low = end
    return low


def _step_from(file: BinaryIO, place: int) -> tuple[int, int | None]:
    """(its end, its step) of the first whole line that begins at a place or after it; None where none is near."""
    file.seek(max(0, place - 1))
    if place and file.read(1) != b"\n":
        file.readline(_MOST_LINE)
    until = file.tell() + 2 * _MOST_LINE
    for _ in range(_DAMAGED):
        line = file.readline(_MOST_LINE) if file.tell() < until else b""
        if not line.endswith(b"\n"):
            break
        if (match := _STEP.match(line)) and line.endswith(b"}\n"):
            return file.tell(), int(match[1])
        if len(line) <= _MOST_FOREIGN and (record := _record(line)) is not None:
            return file.tell(), record["step"]
    return place, None


def read_metrics(workdir: pathlib.Path, log: Callable[[str], None] = lambda message: None) -> list[dict[str, Any]]:
    """The records of metrics.jsonl in order; a half-written last line is left out, and damaged ones, which `log` hears.

    Raises:
      OSError: the file cannot be read.
    """
    path = pathlib.Path(workdir) / NAME
    if not _is_regular(path, log):
        return []
    with open(path, "rb") as file:
        return list(_records(file, path, log))


def spread(workdir: pathlib.Path, log: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Records over the whole of metrics.jsonl, in order and bounded time: all of its end, and some of what is before.

    Raises:
      OSError: the file cannot be read.
    """
    path = pathlib.Path(workdir) / NAME
    if not _is_regular(path, log):
        return
    with open(path, "rb") as file:
        before = max(0, os.fstat(file.fileno()).st_size - _WHOLE)
        stretch, place = max(_WHOLE // _PLACES, before // _PLACES), 0
        while place < before:
            file.seek(place)
            piece = file.read(min(stretch, _PIECE, before - place))
            line = _some(piece + file.readline(_MOST_LINE)) if b"\n" in piece else b""
            if (record := _record(line)) is not None:
                yield record
            place += max(stretch, len(line) * before // _LOOKED_AT)
        file.seek(before)
        if before:
            file.readline(_MOST_LINE)
        yield from _records(file, path, log)


def _some(piece: bytes) -> bytes:
    """A line that begins in a piece of the file: of an evaluation, if there is one."""
    first = piece.index(b"\n") + 1
    begin = piece.rfind(b"\n", 0, max(first, piece.find(_HELD_OUT, first))) + 1
    return piece[begin : piece.find(b"\n", begin) + 1]


def _is_regular(path: pathlib.Path, log: Callable[[str], None]) -> bool:
    regular = path.is_file() and not path.is_symlink()
    if not regular and (path.is_symlink() or path.exists()):
        log(f"{path}: no regular file; it is left out")
    return regular


def _records(file: BinaryIO, path: pathlib.Path, log: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """One after another from where the file is, however many there are; of damaged lines the first are named."""
    damaged = 0
    for line in iter(lambda: file.readline(_MOST_LINE + 1), b""):
        if len(line) > _MOST_LINE:  # holes, or no file of a run
            log(f"{path}: a line of more than {_MOST_LINE:,} bytes; it and what follows is left out")
            break
        record = _record(line)
        if record is not None:
            yield record
        elif line.strip() and line.endswith(b"\n"):
            damaged += 1
            if damaged <= _NAMED:
                at = file.tell() - len(line)
                log(f"{path}, byte {at:,}: no object with a step; it is left out")
    if damaged > _NAMED:
        log(f"{path}: and {damaged - _NAMED:,} more such lines")


def _record(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n") or line.count(b"[") + line.count(b"{") > _MOST_LISTS or _LONG.search(line):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and type(record.get("step")) is int
    return record if whole else None
