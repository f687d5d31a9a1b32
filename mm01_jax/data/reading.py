"""Parquet and ArrayRecord files, read in a process of its own: of some damage their libraries end the one they are in.

Here is what asks (`batches`, `num_records`, `records`), and what is run there (`serve`): each request is about one
file, and has the time of the processor (`cost.py`) and the memory that a file of its size may take.
"""

import array
import contextlib
import functools
import json
import os
import resource
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from mm01_jax.data import cost
from mm01_jax.data.apart import Ended, Pool, Process
from mm01_jax.data.text import DataError, Unreadable
from mm01_jax.data.tokenizer_process import confine, stay, used
from mm01_jax.files import parse_json, why

_PROGRAM = ["-c", "from mm01_jax.data.reading import serve; serve()"]
# The other pools of memory have so much of the system at once that no bound tells what is used of it.
_SYSTEM_POOL = {"ARROW_DEFAULT_MEMORY_POOL": "system"}
_SECONDS = 120.0  # that a disk may let wait
_MEMORY, _TIMES = 320 << 20, 8  # bytes of memory: of which Python and pyarrow have 130 MiB; and for each of the file
_THREADS = 65  # that the library of ArrayRecord starts, each of which takes a stack whether it uses it or not
_OPEN = 64  # readers of ArrayRecord files that are kept, each with an index of its records
Texts = list[bytes | None]


def batches(name: str, path: os.PathLike | str, field: str) -> Iterator[tuple[int, Texts]]:
    """(bytes of the file, texts) of the rows of a Parquet file, one after the other.

    Raises:
      DataError: what `parquet_rows.Rows` says, or that the process has ended.
    """
    with _borrowed(name, path, {"do": "batches", "field": field}) as process:
        while (answer := _heard(process))[0] is not None:
            yield answer


def num_records(name: str, path: os.PathLike | str) -> int:
    """Of an ArrayRecord file; DataError where it is none."""
    with _A_FEW, _borrowed(name, path, {"do": "count"}) as process:
        return _heard(process)[0]


def records(name: str, path: os.PathLike | str, start: int, stop: int) -> list[bytes]:
    """Records [start, stop) of an ArrayRecord file; DataError where they are damaged."""
    with _A_FEW, _borrowed(name, path, {"do": "records", "start": start, "stop": stop}) as process:
        return _heard(process)[1]


def single(wanted: Sequence[tuple[str, str, int]]) -> list[bytes]:
    """One record of an ArrayRecord file for each (name, path, number), all by one question; errors as of `records`."""
    name, path, _ = max(wanted, key=lambda one: _size(one[0], one[1]))
    with _A_FEW, _borrowed(name, path, {"do": "single", "wanted": wanted}) as process:
        return _heard(process)[1]


_A_FEW = threading.BoundedSemaphore(4)  # processes of open files, however many threads read records
# By whether they read Parquet: each library has its own.
_POOLS = {parquet: Pool(_PROGRAM, _SYSTEM_POOL) for parquet in (True, False)}


@contextlib.contextmanager
def _borrowed(name: str, path: os.PathLike | str, request: dict[str, Any]) -> Iterator[Process]:
    """A process that has been asked."""
    size, parquet = _size(name, path), request["do"] == "batches"
    memory = _MEMORY + _TIMES * size + (0 if parquet else _THREADS * _stack())
    head, seconds = request | {"name": name, "path": os.fspath(path)}, cost.SECONDS + cost.A_MIB * size / 2**20
    try:
        with _POOLS[parquet].asked(head, seconds=seconds, memory=memory) as process:
            yield process
    except Ended as error:
        raise DataError(f"{name}: reading it {error}.") from None


def _size(name: str, path: os.PathLike | str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise Unreadable(f"{name} cannot be read: {why(error)}.") from error


def _stack() -> int:
    """Bytes of a thread's stack."""
    size = resource.getrlimit(resource.RLIMIT_STACK)[0]
    return size if size != resource.RLIM_INFINITY else 2 << 20


def _heard(process: Process) -> tuple[int | None, Texts]:
    head, content = process.hear(_SECONDS)
    if "error" in head:
        raise (Unreadable if head["unreadable"] else DataError)(head["error"])
    if not head.get("texts"):
        return head["number"], []
    sizes, at, texts = array.array("q", content[: 8 * head["texts"]]), 8 * head["texts"], []
    for size in sizes:
        texts.append(content[at : at + size] if size >= 0 else None)
        at += max(size, 0)
    return head["number"], texts


def serve() -> None:
    """What the process does: answers requests until there are no more."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while line := requests.readline():
        request = parse_json(line)
        stay(request["bytes"])
        began, left = used(), request["seconds"]
        confine(left)
        try:
            for number, texts in _DOES[request["do"]](request):
                _answer(answers, number, texts)
                left += cost.A_RECORD * len(texts)
                confine(began + left - used())
                del texts  # before the next are made
        except DataError as error:
            _say(answers, {"error": str(error), "unreadable": isinstance(error, Unreadable)}, [])
        except MemoryError:
            what = f"reading it takes more than {request['bytes'] >> 20:,} MiB of memory"
            _say(answers, {"error": f"{request['name']}: {what}.", "unreadable": False}, [])


def _batches(request: dict[str, Any]) -> Iterator[tuple[int | None, Texts]]:
    from mm01_jax.data.parquet_rows import Rows

    yield from Rows(request["name"], request["path"], request["field"]).batches()
    yield None, []


def _count(request: dict[str, Any]) -> Iterator[tuple[int, Texts]]:
    _reader.cache_clear()  # the file may be another one now
    yield _reader(request["name"], request["path"]).num_records(), []


def _records(request: dict[str, Any]) -> Iterator[tuple[int, Texts]]:
    name, start, stop = request["name"], request["start"], request["stop"]
    try:
        yield 0, _reader(name, request["path"]).read(start, stop)
    except (RuntimeError, ValueError, IndexError) as error:
        raise DataError(f"{name} is damaged in records {start} to {stop - 1}: {error}") from error


def _single(request: dict[str, Any]) -> Iterator[tuple[int, Texts]]:
    asked = [{"name": name, "path": path, "start": at, "stop": at + 1} for name, path, at in request["wanted"]]
    yield 0, [text for one in asked for _, texts in _records(one) for text in texts]


_DOES = {"batches": _batches, "count": _count, "records": _records, "single": _single}


@functools.lru_cache(_OPEN)
def _reader(name: str, path: str):
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        return ArrayRecordReader(path, "readahead_buffer_size:0,max_parallelism:0")
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{name} is not an ArrayRecord file: {error}") from error


def _answer(answers, number: int | None, texts: Texts) -> None:
    sizes = array.array("q", [-1 if text is None else len(text) for text in texts])
    _say(answers, {"number": number, "texts": len(texts)}, [sizes.tobytes(), *(text for text in texts if text)])


def _say(answers, head: dict[str, Any], parts: list[bytes]) -> None:
    answers.write(json.dumps(head | {"size": sum(map(len, parts))}).encode() + b"\n")
    for part in parts:
        answers.write(part)
    answers.flush()
