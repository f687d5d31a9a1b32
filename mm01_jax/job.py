"""Which of several processes of one job this is, as `cluster.join` found; imports no jax, so that `command` can ask."""

import os
import sys
import time
from typing import NamedTuple

_MOMENT = 2.0  # seconds that the others have for saying what is wrong with them, when the first one ends


class Process(NamedTuple):
    """The place of this process among `count`."""

    index: int
    count: int


class Gone(RuntimeError):
    """Another process of this job has died or left."""

    exit_code = 69


_this: Process | None = None


def set_process(index: int, count: int) -> None:
    """Called once, by who joins the processes."""
    global _this
    _this = Process(index, count)


def is_one_of_several() -> bool:
    return _this is not None and _this.count > 1


def gone(why: str) -> str:
    """What to say where another process does not answer."""
    others = [str(index) for index in range(_this.count) if index != _this.index] if _this else []
    which = f"process {others[0]}" if len(others) == 1 else f"one of the processes {', '.join(others)}"
    return f"{which} of this job has died or left ({' '.join(why.split())[:200]})"


def leave(code: int) -> None:
    """Ends a process of several at once: at its end jax waits for the others, which may wait for this one meanwhile."""
    if not is_one_of_several():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if _this.index == 0:  # all are connected to the first, and end with it
        time.sleep(_MOMENT)
    os._exit(code)
