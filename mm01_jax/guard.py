"""A bound on what reading a directory may cost, whatever lies in it: processor time and memory.

Every reader refuses what it knows to grow without end; this is for what nobody thought of. Only what describes weights
is read under it (configs, manifests, headers, names), of which the released 456 B parameters take a second; weights,
text and tokenizers, whose cost is of their size, have bounds of their own.
"""

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator

from mm01_jax.files import FileError, shown

SECONDS, BYTES = 4.0, 160 * 2**20  # of this thread's processor time; that the process may grow by
_EVERY = 0.02  # seconds between looks
_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
_inside = threading.local()
_LONG, _LATELY = 0.5, 30.0  # seconds of a reading that counts again in the next one, and until when
_spent: dict[str, tuple[float, float]] = {}  # of a directory: seconds, and when: a command may open it several times


class _Exceeded(BaseException):
    """Raised in the thread that reads, wherever it is; no reader that goes on after an Exception catches it."""


@contextlib.contextmanager
def reading(directory, times: float = 1) -> Iterator[None]:
    """A context in which a directory may take so much and no more; the outermost counts.

    Args:
      times: of what it may take, where a caller knows that more is there.

    Raises:
      FileError: it takes more; names the directory and the bound.
    """
    if getattr(_inside, "watch", None):
        yield
        return
    place = os.path.realpath(directory)
    before, when = _spent.pop(place, (0.0, 0.0))
    before = before if time.monotonic() - when < _LATELY else 0.0
    watch = _inside.watch = _Watch(SECONDS * times - before, BYTES * times)
    try:
        try:
            yield
        finally:
            watch.end()
    except _Exceeded:
        watch.end()  # the first may have been interrupted
    finally:
        _inside.watch = None
        if watch.seconds() > _LONG:
            _spent[place] = before + watch.seconds(), time.monotonic()
    if watch.found:
        what = "what it says about its weights (configs, manifests, names) takes more than"
        raise FileError(f"{shown(directory)}: {what} {watch.found} to read, so it is none that was made in good faith")


class _Watch:
    """Looks at the thread that makes it, from another one, and interrupts it where it exceeds its bounds."""

    def __init__(self, seconds: float, nbytes: float):
        self.found = ""
        self._thread, self._lock, self._over = threading.get_ident(), threading.Lock(), threading.Event()
        self._clock, self._most = _clock(self._thread), (seconds, nbytes)
        self._began, self._grown = self._clock(), _memory()
        threading.Thread(target=self._look, daemon=True, name="guard").start()

    def seconds(self) -> float:
        return self._clock() - self._began

    def end(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(_Exceeded), self._lock:
                self._over.set()
                _raise_in(ctypes.c_ulong(self._thread), None)  # what is on its way still

    def _look(self) -> None:
        seconds, nbytes = self._most
        while not self._over.wait(_EVERY):
            if self.seconds() > seconds:
                self._interrupt(f"{SECONDS:g} s of processor time")
            elif _memory() - self._grown > nbytes:
                self._interrupt(f"{int(nbytes) >> 20} MiB of memory")

    def _interrupt(self, found: str) -> None:
        """Again, until it is over: what is raised while a destructor runs is lost."""
        with self._lock:
            if not self._over.is_set():
                self.found = self.found or found
                _raise_in(ctypes.c_ulong(self._thread), ctypes.py_object(_Exceeded))
        self._over.wait(10 * _EVERY)


def _clock(thread: int):
    """A thread's processor time in seconds; where a system does not tell it, that of the process."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.process_time
    clock = time.pthread_getcpuclockid(thread)
    return lambda: time.clock_gettime(clock)


def _memory() -> int:
    """Bytes of memory that this process has for itself alone; 0 where a system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            _, resident, shared, *_ = map(int, file.read().split())
    except OSError:
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
