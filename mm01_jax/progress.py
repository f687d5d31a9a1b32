"""One line that says how far a program is, and times as people write them."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from mm01_jax.messages import screen


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
        self.end()
        self.out.write(screen(text) + "\n")
        self.out.flush()

    def end(self) -> None:
        """What comes next on a terminal begins a line."""
        if self.open:
            self.out.write("\n")
            self.out.flush()
        self.open = False


class Watch:
    """How far something is that says nothing until it ends: on stderr, from the fifth second on."""

    def __init__(self, what: str, total: int, unit: str = ""):
        """total: of what `at` is told; unit: what those are, "bytes"."""
        self._what, self._total, self._unit = what, total, unit and f" {unit}"
        self._began = self._said = time.monotonic()

    def at(self, done: int) -> None:
        """Called as often as one likes."""
        now = time.monotonic()
        if now - self._said < Progress.SECONDS:
            return
        self._said = now
        left = clock((now - self._began) / done * (self._total - done) if done else float("inf"))
        print(f"{self._what}: {done:,} of {self._total:,}{self._unit}, {left} left", file=sys.stderr, flush=True)


@contextlib.contextmanager
def saying(what: str) -> Iterator[None]:
    """A context that says on stderr what it is at, from the fifth second on; for what cannot say how far it is."""
    late = threading.Timer(Progress.SECONDS, print, (what,), {"file": sys.stderr, "flush": True})
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss; infinity as "unknown time"."""
    if seconds == float("inf"):
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
