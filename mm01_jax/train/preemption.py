"""SIGTERM and SIGINT: the first asks the run to save its current step and stop; a SIGINT after it ends it at once."""

import signal

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """A signal came and the current step was saved. Exit code 75."""


class Preemption:
    """A context in which signals are remembered instead of obeyed; use it in the main thread."""

    def __init__(self):
        self._signal: int | None = None
        self._before = {}

    def __enter__(self) -> "Preemption":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame) -> None:
        self._signal = number
        # From the kernel on: an exception would wait for compiled code to return, and then for the save behind the
        # training. A SIGTERM that comes twice, as from a launcher that passes it on, asks for nothing new.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def requested(self, step: int) -> bool:
        """Whether to stop after `step`; all processes of a run get the same answer at the same step."""
        if jax.process_count() == 1:
            return self._signal is not None
        # The coordination service sees the signal of any process and picks a step that all of them reach. It listens
        # to SIGTERM itself, so a process that also has a Python handler still takes part.
        return multihost_utils.reached_preemption_sync_point(step)
