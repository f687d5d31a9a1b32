"""Shards of a plan, made by several processes: which of them makes one changes no byte.

A worker is a Python of its own, told shards by lines of JSON on stdin, answering by lines on stdout. It ends when its
stdin does, so that none outlives whoever started it, in whatever way that one ended.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mm01_jax.data.text import DataError
from mm01_jax.data.tokenize import plan as planning
from mm01_jax.data.tokenize import shard as shards
from mm01_jax.data.tokenize.plan import Asked, Plan
from mm01_jax.files import parse_json

VERIFIED = "verified"
_SAID_SECONDS = 0.5  # between a worker's words about how far it is
_WORKER = "from mm01_jax.data.tokenize.work import serve; serve()"


class Event(NamedTuple):
    """seen: bytes of the source, more. done: a shard that is there now. found: what was said of one, "" for nothing."""

    seen: int = 0
    tokens: int = 0
    done: int | None = None
    found: str = ""


def do(plan: Plan, numbers: Sequence[int], workers: int) -> Iterator[Event]:
    """Makes the shards of these numbers that are not there, and looks at every byte of those that are.

    Raises:
      DataError: a source that is bad, or a worker that ended.
    """
    left = iter(numbers)
    answers: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
    with contextlib.ExitStack() as stack:
        for _ in range(min(workers, len(numbers))):
            stack.enter_context(_Worker(plan, answers)).ask(next(left))
        unfinished = len(numbers)
        while unfinished:
            worker, answer = answers.get()
            if answer is None:
                raise DataError(
                    f"a worker of mm01-tokenize ended with {worker.code()} at shard {worker.shard}; the same command "
                    "goes on. With less memory than the texts need take fewer --workers."
                )
            if "error" in answer:
                raise _error(answer)
            yield (event := Event(**answer))
            if event.done is not None:
                unfinished -= 1
                worker.ask(next(left, None))


def settle(plan: Plan, shard: int, seen=lambda size: None) -> Event:
    """Makes a shard, unless it is there as it was written."""
    size = sum(piece.stop - piece.start for piece in plan.shards[shard])
    found = _looked_at(plan, shard)
    if found == VERIFIED:
        return Event(size, 0, shard, found)
    told = 0

    def tell(more: int) -> None:
        nonlocal told
        told += more
        seen(more)

    summary = shards.make(plan, shard, tell)
    return Event(size - told, summary["tokens"], shard, found)


def _looked_at(plan: Plan, shard: int) -> str:
    try:
        if (summary := shards.read_summary(plan.out, shard)) is None:
            return ""
        wrong = shards.problem(plan.out, shard, summary)
    except DataError as error:
        wrong = str(error)
    return f"made again: {wrong}" if wrong else VERIFIED


class _Worker:
    """A process that makes shards; what it answers is put into `answers`, None when it has ended."""

    def __init__(self, plan: Plan, answers: queue.Queue):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TOKENIZERS_PARALLELISM": "false",  # a worker is one of as many as there are processors
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        # A session of its own: Ctrl-C is for the command, which then ends its workers.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _WORKER], env=environment, start_new_session=True, **pipes
        )
        self.shard: int | None = None
        self._answers = answers
        self._say({"asked": plan.asked._asdict(), "facts": plan.facts, "harmless": plan.harmless})
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()

    def ask(self, shard: int | None) -> None:
        if shard is not None:
            self.shard = shard
            self._say({"shard": shard})

    def code(self) -> int:
        return self._process.wait()

    def _say(self, what: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # it has ended, which its answers say
            self._process.stdin.write(json.dumps(what).encode() + b"\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self._process.stdout:
                self._answers.put((self, parse_json(line)))
        self._answers.put((self, None))


def serve() -> None:
    """What a worker does: plans what it is told, then makes shard after shard."""
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    try:
        first = parse_json(lines.get())
        plan = planning.make_again(Asked(**first["asked"]), first["facts"], first["harmless"])
        while True:
            teller = _Teller()
            _answer(settle(plan, parse_json(lines.get())["shard"], teller.seen)._asdict())
    except OSError as error:
        _answer({"error": error.strerror or str(error), "errno": error.errno, "path": error.filename})
    except (DataError, ValueError) as error:
        _answer({"error": str(error), "typed": not isinstance(error, DataError)})
    except BaseException:
        traceback.print_exc()
    os._exit(1)  # the thread that listens holds stdin, which Python would wait for


def _error(answer: dict[str, Any]) -> Exception:
    """What a worker raised, as it said it."""
    if "errno" in answer:
        return OSError(answer["errno"], answer["error"], answer["path"])
    return (ValueError if answer["typed"] else DataError)(answer["error"])


def _listen(lines: queue.Queue) -> None:
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(0)  # whoever asked has gone


class _Teller:
    """Says now and then how many bytes more have been read."""

    def __init__(self):
        self._untold, self._clock = 0, time.monotonic()

    def seen(self, size: int) -> None:
        self._untold += size
        if time.monotonic() - self._clock > _SAID_SECONDS:
            _answer(Event(self._untold)._asdict())
            self._untold, self._clock = 0, time.monotonic()


def _answer(what: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(what).encode() + b"\n")
    sys.stdout.buffer.flush()
