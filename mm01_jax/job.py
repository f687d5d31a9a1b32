"""Which of several processes of one job this is, as `cluster.join` found; imports no jax, so that `command` can ask."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

SILENT_SECONDS = 20.0  # after which `pulse` takes a process for dead
_MOMENT = 2.0  # seconds that the others have for saying what is wrong with them, when the first one ends


class Process(NamedTuple):
    """The place of this process among `count`."""

    index: int
    count: int


class Gone(RuntimeError):
    """Another process of this job has died or left."""

    exit_code = 69


_this: Process | None = None
_says = ""  # what stands in front of each message of this command
_last: list[Callable[[], None]] = []  # what is done before this process leaves


def set_process(index: int, count: int) -> None:
    """Called once, by who joins the processes."""
    global _this
    _this = Process(index, count)


def set_prefix(prefix: str) -> None:
    """Called once, by the command that this process is."""
    global _says
    _says = prefix


def before_leaving(act: Callable[[], None]) -> None:
    _last.append(act)


def is_one_of_several() -> bool:
    return _this is not None and _this.count > 1


def gone(why: str, which: int | None = None) -> str:
    """What to say where another process does not answer.

    which: None where one does not know; of more than two `pulse` then finds it out, and ends this process meanwhile.
    """
    if which is None and _this and _this.count == 2:
        which = 1 - _this.index
    if which is None:
        time.sleep(SILENT_SECONDS + 2 * _MOMENT)
    named = "another process" if which is None else f"process {which}"
    return f"{named} of this job has died or left ({' '.join(why.split())[:200]})"


def end(which: int, why: str) -> None:
    """Ends this process because of another, from any thread: the main one may wait for ever, and have stdout's lock."""
    late = threading.Timer(3 * _MOMENT, os._exit, (Gone.exit_code,))
    late.daemon = True
    late.start()
    with contextlib.suppress(OSError):
        os.write(2, f"{_says}{gone(why, which)}\n".encode())
    leave(Gone.exit_code)


def leave(code: int) -> None:
    """Ends a process of several at once: at its end jax waits for the others, which may wait for this one meanwhile."""
    if not is_one_of_several():
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    if _this.index == 0:  # all are connected to the first, and end with it
        time.sleep(_MOMENT)
    for act in _last:
        act()
    os._exit(code)
