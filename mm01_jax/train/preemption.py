"""Signals that ask a run to save its current step and stop: SIGTERM, SIGHUP, the first Ctrl-C, and what is named.

A second Ctrl-C ends the process at once; where the process is another's (a notebook's), it raises KeyboardInterrupt.
A signal that was ignored when the process began (`nohup`) stays so.
"""

import os
import signal
import threading
from collections.abc import Sequence

import jax
from jax.experimental import multihost_utils

from mm01_jax import signals


class Preempted(Exception):
    """A signal came and the current step was saved."""

    exit_code = 75


class Preemption:
    """A context in which signals are remembered instead of obeyed; outside the main thread nothing.

    Args:
      more: further signals to listen to, as launchers send them (SIGUSR1, SIGUSR2).
    """

    INTERRUPTED = 128 + signal.SIGINT  # exit code of a process that a second SIGINT ended

    def __init__(self, more: Sequence[signal.Signals] = ()):
        # Of several processes jax's coordination service listens to SIGTERM itself, and a handler here would end that.
        alone = (signal.SIGTERM,) if jax.process_count() == 1 else ()
        self._signals = (*alone, signal.SIGINT, signal.SIGHUP, *more)
        self._signal: int | None = None
        self._before = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is not threading.main_thread():
            return self
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in self._signals:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._remember)
        threading.Thread(target=self._watch, args=(read,), name="signals", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._write)  # ends the thread

    def _remember(self, number: int, frame) -> None:
        if self._signal is not None and number == signal.SIGINT and not signals.may_end_process():
            raise KeyboardInterrupt
        self._signal = number
        if signal.SIGTERM not in self._signals:
            os.kill(os.getpid(), signal.SIGTERM)

    def _watch(self, read: int) -> None:
        """Sees signals while the main thread is inside compiled code or a compilation, where no handler runs.

        A SIGTERM that comes twice, as from a launcher that passes it on, asks for nothing new.
        """
        came_before = False
        while number := os.read(read, 1):
            if came_before and number[0] == signal.SIGINT and signals.may_end_process():
                os._exit(self.INTERRUPTED)  # an exception would wait for the main thread, and for a save
            came_before = True
        os.close(read)

    def requested(self, step: int) -> bool:
        """Whether to stop after `step`; all processes of a run get the same answer at the same step."""
        if jax.process_count() == 1:
            return self._signal is not None
        # The coordination service sees the signal of any process and picks a step that all of them reach.
        return multihost_utils.reached_preemption_sync_point(step)
