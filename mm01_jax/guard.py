"""A bound on what reading a directory may cost, whatever lies in it: processor time and memory.

Every reader refuses what it knows to grow without end; this is for what nobody thought of. Only what describes weights
is read under it (configs, manifests, headers, names), of which the released 456 B parameters take a second; weights,
text and tokenizers, whose cost is of their size, have bounds of their own. Threads other than the main one are not
watched: commands read there what they were told to, before anything else.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable

from mm01_jax.files import FileError, shown

SECONDS, BYTES = 4.0, 160 * 2**20  # of the main thread's processor time; that the process may grow by
_EVERY, _AGAIN = 0.02, 0.2  # seconds between looks, and interruptions
_LONG, _LATELY = 0.5, 30.0  # seconds of a reading that counts again in the next one, and until when
_SIGNAL = signal.SIGVTALRM  # nothing else of ours uses it
_spent: dict[str, tuple[float, float]] = {}  # of a directory: seconds, and when: a command may open it several times
_running: "_Watch | None" = None


class _Exceeded(BaseException):
    """Raised in the thread that reads, wherever it is; no reader that goes on after an Exception catches it."""


def reading[T](directory, read: Callable[[], T], times: float = 1) -> T:
    """What `read` makes of a directory, within what one may take; of readings inside one another the outermost counts.

    Args:
      times: of what it may take, where a caller knows that more is there.

    Raises:
      FileError: it takes more; names the directory and the bound.
    """
    global _running
    if _running or threading.current_thread() is not threading.main_thread():
        return read()
    place = os.path.realpath(directory)
    before, when = _spent.pop(place, (0.0, 0.0))
    before = before if time.monotonic() - when < _LATELY else 0.0
    signal.signal(_SIGNAL, _interrupt)  # and stays: one may be on its way when all is read
    watch = _Watch(SECONDS * times - before, BYTES * times)
    try:  # no context manager: in its own first instructions it could be interrupted, and would not end
        _running = watch
        made = read()
        _running = None  # from here on the signal does nothing
    except _Exceeded:
        pass
    finally:
        _running = None
        watch.over.set()
        if watch.seconds() > _LONG:
            _spent[place] = before + watch.seconds(), time.monotonic()
    if watch.found:
        what = f"what it says about its weights (configs, manifests, names) takes more than {watch.found} to read"
        raise FileError(f"{shown(directory)}: {what}; that of 456 B parameters takes a small part of it")
    return made


def _interrupt(number: int, frame: object) -> None:
    """Runs in the main thread between two instructions, so that what it finds running is what it interrupts."""
    if _running and _running.found:  # a signal for an earlier one may come late
        raise _Exceeded


class _Watch:
    """Looks at the main thread from another one, and signals to it where it exceeds its bounds."""

    def __init__(self, seconds: float, nbytes: float):
        self.found, self.over, self._most = "", threading.Event(), (seconds, nbytes)
        self._clock, self._main = _clock(), threading.get_ident()
        self._began, self._grown = self._clock(), _memory()
        threading.Thread(target=self._look, daemon=True, name="guard").start()

    def seconds(self) -> float:
        return self._clock() - self._began

    def _look(self) -> None:
        seconds, nbytes = self._most
        while not self.over.wait(_EVERY):
            if self.seconds() > seconds:
                self._end(f"{SECONDS:g} s of processor time")
            elif _memory() - self._grown > nbytes:
                self._end(f"{int(nbytes) >> 20} MiB of memory")

    def _end(self, found: str) -> None:
        """Again, until it is over: what is raised while a destructor runs is lost."""
        if _running is self:
            self.found = self.found or found
            signal.pthread_kill(self._main, _SIGNAL)
        self.over.wait(_AGAIN)


def _clock() -> Callable[[], float]:
    """This thread's processor time in seconds, for any thread; where a system does not tell it, the process's."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.process_time
    clock = time.pthread_getcpuclockid(threading.get_ident())
    return lambda: time.clock_gettime(clock)


def _memory() -> int:
    """Bytes of memory that this process has for itself alone; 0 where a system does not tell."""
    with contextlib.suppress(OSError), open("/proc/self/statm", "rb") as file:
        _, resident, shared, *_ = map(int, file.read().split())
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    return 0
