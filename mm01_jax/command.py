"""How every command ends: what went wrong as a message on stderr instead of a traceback, and one of these exit codes.

    0    done
    2    what was typed is wrong
    3    bad checkpoint or data
    4    too many refused (non-finite) steps
    74   the last step could not be saved
    75   preempted after saving
    130  interrupted
    141  whoever read the output has gone

An exception says its own code in a class attribute `exit_code`. A plain ValueError, an OSError (a file that is not
there) and an error of absl's flags are what was typed. Anything else is a bug: it shows its traceback, and Python's 1.
"""

import difflib
import itertools
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Sequence

from absl import flags

TYPED, INTERRUPTED, CLOSED_PIPE = 2, 130, 141


class Help(Exception):
    """The help was asked for; its text."""


def run(
    function: Callable[[Sequence[str]], int | None],
    argv: Sequence[str] | None = None,
    *,
    name: str = "",
    interrupted: str = "interrupted",
) -> int:
    """Calls `function(argv)`, which returns an exit code or None for 0; what it raises becomes a message and a code.

    Args:
      argv: without the program's name; None is what was typed.
      name: of the command, said in front of the message.
      interrupted: what to say after Ctrl-C.
    """
    prefix = f"{name}: " if name else ""
    _open_what_is_closed()
    stopped = _Stopped()
    try:
        with stopped:
            code = _call(function, sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()  # a reader that has gone, or a full disk, is noticed here, not while Python shuts down
    except BrokenPipeError:
        _drop_stdout()
        return CLOSED_PIPE
    except KeyboardInterrupt:
        print(f"{prefix}{interrupted}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if stopped.came:  # a library that was being imported made another error of it
            print(f"{prefix}{interrupted}", file=sys.stderr)
            return INTERRUPTED
        code = exit_code(error)
        if code is None:
            raise
        print(f"{prefix}{error}", file=sys.stderr)
        _drop_what_cannot_be_written()
    return code


def _call(function: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    try:
        return function(argv) or 0
    except Help as text:
        print(text)
    return 0


def _open_what_is_closed() -> None:
    """A standard stream that the caller has closed (`>&-`) is None in Python."""
    for stream, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, mode))  # noqa: SIM115 - it is open as long as the process


def _drop_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _drop_what_cannot_be_written() -> None:
    try:
        sys.stdout.flush()
    except OSError:  # of a full disk; Python would end with 120
        _drop_stdout()


class _Stopped:
    """A context that raises KeyboardInterrupt on Ctrl-C, as Python does, and remembers it."""

    def __init__(self):
        self.came = False

    def __enter__(self) -> None:
        self._before = None
        in_main = threading.current_thread() is threading.main_thread()  # where alone Python lets handlers be set
        if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # neither ignored nor another's
            self._before = signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number, frame) -> None:
        self.came = True
        signal.default_int_handler(number, frame)

    def __exit__(self, *_) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


def refuse_what_is_no_command(typed: Sequence[str]) -> None:
    """Ends `python -m MODULE` of ours where the module is no program, which would do nothing and succeed.

    Args:
      typed: the command line of the interpreter.
    """
    module = next((following for option, following in itertools.pairwise(typed) if option == "-m"), "")
    package, *parts = module.split(".")
    here = pathlib.Path(__file__).parent
    if package != here.name or not parts or here.joinpath(*parts, "__main__.py").is_file():
        return
    commands = [f"{package}.{main.parent.name}" for main in sorted(here.glob("*/__main__.py"))]
    nearest = next((name for name in commands if f"{module}.".startswith(f"{name}.")), None)
    nearest = nearest or (difflib.get_close_matches(module, commands, n=1, cutoff=0) or commands)[0]
    allowed = f"{', '.join(commands)}; nearest: {nearest} (see --help)"
    print(f"python -m: got {module}, which is no command; allowed: {allowed}", file=sys.stderr)
    sys.exit(TYPED)


def exit_code(error: Exception) -> int | None:
    """The exit code of an error that a person can act on, None of a bug."""
    typed = TYPED if isinstance(error, ValueError | OSError | flags.Error) else None
    return getattr(error, "exit_code", typed)
