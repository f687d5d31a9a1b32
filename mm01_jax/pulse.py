"""The processes of a job hear of each other: where one dies or stalls, the others end, in one line that names it.

jax notices that as well, and ends them by SIGABRT with a C++ stack; one that waits inside a collective of GPUs is told
by nobody. So two threads watch in each process, in Python, which runs while compiled code does:

  one talks: it counts in the store of jax's coordinator, which lives in the first process. The first one reads all of
      it, and writes there who has fallen silent, or that all have ended; the others read that, and so hear the first.
  one judges, by ticks of its own: while this process was stopped, or had no turn, nobody else counts as silent.

A process is silent, too, while C code holds the interpreter's lock; what compiles and computes does not hold it.
"""

import atexit
import contextlib
import ctypes
import itertools
import signal
import socket
import threading
import time
from typing import Any

from mm01_jax import job

TICK = 1.0  # seconds
END_SECONDS = 300.0  # that a process which has ended waits for the others, as jax does
_ROOM, _WORD, _ALL_ENDED = "mm01_jax/pulse/", "mm01_jax/word of the first", "all have ended"
_FIRST = 0


class Pulse:
    """Of this process, which is one of several.

    Args:
      store: jax's client of its coordinator.
      address: host:port of the coordinator.
    """

    def __init__(self, store: Any, address: str, this: job.Process):
        self._store, self._this, self._is_first = store, this, this.index == _FIRST
        host, _, port = address.rpartition(":")
        self._address = host.strip("[]"), int(port)
        listened_to = range(1, this.count) if self._is_first else (_FIRST,)
        self._silent = dict.fromkeys(listened_to, 0)  # ticks since something was heard
        self._said: dict[str, str] = {}
        self._word = ""  # of the first: whose death it has noticed, or that all have ended
        self._ends, self._over, self._leaving = threading.Event(), threading.Event(), threading.Lock()

    def start(self) -> None:
        for work in (self._talk, self._judge):
            threading.Thread(target=work, name=f"pulse: {work.__name__}", daemon=True).start()
        job.before_leaving(self._say_goodbye)
        atexit.register(self._end)  # runs before jax's own, which disconnects

    def _end(self) -> None:
        """The normal end waits for that of all others: nobody takes it for a death, nor dies unnoticed meanwhile."""
        self._ends.set()
        self._over.wait(END_SECONDS)
        self._over.set()

    def _say_goodbye(self) -> None:
        """The first process is about to leave with an error, and the coordinator with it."""
        if self._is_first and not self._word:
            self._word = str(_FIRST)
            time.sleep(2 * TICK)

    def _talk(self) -> None:
        for count in itertools.count():
            with contextlib.suppress(RuntimeError):  # of jaxlib: nothing was heard then
                self._exchange(f"{count} ended" if self._ends.is_set() else f"{count}")
            if self._over.wait(TICK):
                return

    def _exchange(self, mine: str) -> None:
        self._store.key_value_set(f"{_ROOM}{self._this.index}", mine, allow_overwrite=True)
        if self._is_first:
            self._listen()
            self._store.key_value_set(_WORD, word := self._word, allow_overwrite=True)
        else:
            word = self._store.blocking_key_value_get(_WORD, int(job.SILENT_SECONDS * 1000))
            self._silent[_FIRST] = 0
        if word == _ALL_ENDED:
            self._over.set()
        elif word and not self._is_first:
            self._leave(int(word), "says the first process")

    def _listen(self) -> None:
        said = dict(self._store.key_value_dir_get(_ROOM))
        for index in self._silent:
            if said.get(f"{_ROOM}{index}") != self._said.get(f"{_ROOM}{index}"):
                self._silent[index] = 0
        self._said = said
        if sum(mine.endswith("ended") for mine in said.values()) == self._this.count:
            self._word = self._word or _ALL_ENDED

    def _judge(self) -> None:
        while not self._over.wait(TICK):
            for index in self._silent:
                self._silent[index] += 1
                if self._silent[index] * TICK > job.SILENT_SECONDS:
                    self._leave(index, f"not heard of for {job.SILENT_SECONDS:.0f} s")
            if not self._is_first and self._silent[_FIRST] > 2 and self._is_refused():
                self._leave(_FIRST, "it takes no connection any more")

    def _is_refused(self) -> bool:
        """Whether there is no coordinator where it was: jax's threads, one of which may be aborting, cannot tell."""
        try:
            socket.create_connection(self._address, timeout=TICK).close()
        except OSError as error:
            return isinstance(error, ConnectionError)
        return False

    def _leave(self, index: int, why: str) -> None:
        """Ends this process, for good; the first one lives on for a moment, in which it says why."""
        self._leaving.acquire()
        self._word = str(index)
        job.end(index, why)


def start(state: Any) -> None:
    """Of this process, which is one of several. state: what jax knows of its job."""
    # The thread that aborts this process first sleeps for as many seconds as the signal has a number, and aborts then;
    # where that is for the death of the first process, the judge comes before. No Python runs in it: it cannot hang.
    libc = ctypes.CDLL(None)
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
    this = job.Process(state.process_id, state.num_processes)
    Pulse(state.client, state.coordinator_address, this).start()
