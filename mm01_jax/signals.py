"""How Ctrl-C, SIGTERM and SIGHUP end a command: one line and 128 + the signal's number, wherever they come.

Python runs a handler in the main thread, between two of its instructions: not in compiled code, and not while a program
is compiled, for minutes. So the handler raises, and a thread beside it ends a process that has not ended by then.
Training has its own handlers while it steps (`train/preemption.py`), and so have a conversation and a server. In a
process that is another's, as a notebook's, a command obeys Ctrl-C alone, by an exception, and ends nothing but itself.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType

ENDING = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
SECONDS = 3.0  # that the main thread has for ending by itself
_commands = 0  # that have this process for themselves: one, or none
_CHANGES_HANDS = 128  # beside a signal's number, which is less
_notes: int | None = None  # where the thread beside the main one reads what comes, in the order in which it does


class Ended(BaseException):
    """SIGTERM or SIGHUP came."""


def may_end_process() -> bool:
    """Whether this process is a command's, which a second Ctrl-C ends at once."""
    return _commands > 0


def take(numbers: Sequence[int], handler: Callable[[int, FrameType | None], object]) -> Callable[[], None]:
    """Makes `handler` the one of these signals, of which the thread beside the main one then does nothing.

    Whose a signal is follows from when it came, not from whose it is when that thread gets to it: the notes stand
    between the signals. Returns what gives them back, which a second call does not.
    """
    before = {}
    for number in numbers:
        _note(number | _CHANGES_HANDS)
        before[number] = signal.signal(number, handler)

    def give_back() -> None:
        while before:
            number, handler = before.popitem()
            signal.signal(number, handler)
            _note(number | _CHANGES_HANDS)

    return give_back


def _note(said: int) -> None:
    if _notes is not None:
        with contextlib.suppress(BlockingIOError):
            os.write(_notes, bytes([said]))


def end_at_once() -> None:
    """Lets Ctrl-C end this process in one line while it is still importing, and while it shuts down."""
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_DFL):  # neither ignored nor another's
        signal.signal(signal.SIGINT, _end_now)


def _end_now(number: int, frame: FrameType | None) -> None:
    _exit(number, f"{ENDING[number]}\n")


def _exit(number: int, text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
    os._exit(128 + number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


class Ends:
    """A context in which these signals end the command; outside the main thread, where none can be set, nothing.

    prefix: the command's name, said in front of the line. interrupted: what to say after Ctrl-C. alone: the process is
    this command's.
    """

    def __init__(self, prefix: str, interrupted: str, *, alone: bool = True):
        self._texts = ENDING | {signal.SIGINT: interrupted}
        self._prefix, self._alone = prefix, alone
        self.came: int | None = None  # the first signal

    def __enter__(self) -> "Ends":
        global _commands, _notes
        self._before, self._hook = {}, sys.unraisablehook
        if threading.current_thread() is not threading.main_thread():
            return self
        ours = {signal.SIGINT: (signal.default_int_handler, _end_now)}
        for number in ENDING if self._alone else (signal.SIGINT,):
            if signal.getsignal(number) in ours.get(number, (signal.SIG_DFL,)):
                self._before[number] = signal.signal(number, self._handle)
        if not self._alone:
            return self
        _commands += 1
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        _notes = self._write
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        sys.unraisablehook = self._unraisable
        threading.Thread(target=self._watch, args=(read,), name="signals of the command", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        global _commands, _notes
        if threading.current_thread() is not threading.main_thread():
            return
        if self._alone:
            _commands -= 1
            sys.unraisablehook = self._hook
            signal.set_wakeup_fd(self._wakeup_before)
            _notes = None
            os.close(self._write)  # ends the thread
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)

    def text(self, number: int) -> str:
        """What is said of a signal."""
        return f"{self._prefix}{self._texts[number]}"

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.came = self.came or number
        # What C code makes of an exception while something is imported is a traceback, and there is nothing to end.
        if self._alone and _is_importing(frame):
            _exit(number, f"{self.text(number)}\n")
        raise KeyboardInterrupt if number == signal.SIGINT else Ended

    def _unraisable(self, given) -> None:
        """A signal that came inside a destructor or a callback, where what a handler raises is lost."""
        if issubclass(given.exc_type, KeyboardInterrupt | Ended):
            _exit(self.came or signal.SIGINT, f"{self.text(self.came or signal.SIGINT)}\n")
        self._hook(given)

    def _watch(self, read: int) -> None:
        """Ends the process at once on a second Ctrl-C, and where nothing else has some time after a first signal."""
        first, taken = 0, set()
        while True:
            ready, _, _ = select.select([read], [], [], SECONDS if first else None)
            said = os.read(read, 1) if ready else b""
            if ready and not said:
                os.close(read)
                return
            number = said[0] % _CHANGES_HANDS if ready else 0
            if ready and said[0] != number:
                taken ^= {number}
            elif not ready or (first and number == signal.SIGINT):
                _exit(first, f"{self.text(first)}\n")
            elif number in self._before and number not in taken:
                first = first or number
