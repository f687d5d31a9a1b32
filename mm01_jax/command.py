"""How every command ends: what went wrong as a message on stderr instead of a traceback, and one of these exit codes.

    0    done
    1    a bug; of a drill or a bench: something went wrong
    2    what was typed is wrong
    3    bad checkpoint or data
    4    too many refused (non-finite) steps
    69   another process of the job has died or left
    74   a full or broken disk
    75   preempted after saving
    129  hung up
    130  interrupted
    141  whoever read the output has gone
    143  terminated

An exception says its own code in an attribute `exit_code`. A plain ValueError, an OSError (a file that is not there)
and an error of absl's flags are what was typed; a file that is there and may not be read is bad data, an OSError of a
full or broken disk the disk's. Memory that
does not suffice is what was typed, too. Anything else is a bug: it shows its traceback. A process of several that ends
with an error ends at once; `pulse` ends the others.
"""

import contextlib
import gc
import io
import itertools
import os
import pathlib
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from absl import flags

from mm01_jax import job, messages, signals
from mm01_jax.files import OF_THE_DISK, FileError, shown
from mm01_jax.values import similar

TYPED, DISK, PREEMPTED, CLOSED_PIPE = 2, 74, 75, 141
_STATUS = re.compile("[A-Z_]+: ")  # in front of what jaxlib says, also where it makes a ValueError of it
_ELSEWHERE = re.compile("Gloo|NCCL|[Hh]eartbeat|[Cc]oordination|Connection (reset|closed|refused)|Socket closed")


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
      argv: without the program's name; None is what was typed, and then the process is this command's: in a notebook or
        a test, which gives them, Ctrl-C never ends it.
      name: of the command, said in front of the message.
      interrupted: what to say after Ctrl-C.
    """
    prefix = f"{name}: " if name else ""
    os.environ.pop("JAX_ENABLE_X64", None)  # before jax is imported: whoever set it, results are the same
    _open_what_is_closed()
    job.set_prefix(prefix)
    ends = signals.Ends(prefix, interrupted, alone=argv is None)
    try:
        code = _ended(function, argv, ends, prefix)
    except Exception:
        if argv is None and job.is_one_of_several():
            traceback.print_exc()
            job.leave(1)
        raise
    if argv is None and code not in (0, PREEMPTED):
        job.leave(code)
    if argv is None and ends.came is not None and code == 128 + ends.came:
        _leave(code)
    return code


def _leave(code: int) -> None:
    """Ends the process of a command that a signal has ended; a second one, while Python shuts down, would kill it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def _ended(
    function: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None, ends: signals.Ends, prefix: str
) -> int:
    """The exit code of `run`, when all is said."""
    try:
        with ends, _stdout_as(_Named):
            code = _call(function, sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()  # a reader that has gone, or a full disk, is noticed here, not while Python shuts down
    except BrokenPipeError:
        _drop(sys.stdout)
        return CLOSED_PIPE
    except (Exception, KeyboardInterrupt, signals.Ended) as error:
        if ends.came or isinstance(error, KeyboardInterrupt):  # a library may have made another error of it
            number = ends.came or signal.SIGINT
            _say(ends.text(number))
            return 128 + number
        code = exit_code(error)
        if code is None:
            raise
        _say(messages.screen(f"{prefix}{_message(error)}"))
        _drop_what_cannot_be_written()
    return code


def _message(error: Exception) -> str:
    """What is said of an error: of one cause a few lines, and without what a terminal would obey."""
    if isinstance(error, MemoryError):
        return f"the memory of this machine does not suffice: {error or 'no more could be had'}"
    if _is_of_another_process(error):
        return job.gone(str(error))
    if _is_out_of_memory(error):
        return f"the memory of the device does not suffice: {str(error).splitlines()[0]}; mm01-plan says what is needed"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{shown(error.filename)}: {error.strerror}"
    return str(error)


def _is_of_another_process(error: Exception) -> bool:
    """Of jaxlib, in a collective that another process does not take part in any more."""
    of_jax = type(error).__name__ == "JaxRuntimeError" or (type(error) is ValueError and _STATUS.match(str(error)))
    return bool(of_jax and job.is_one_of_several() and _ELSEWHERE.search(str(error)))


def _is_out_of_memory(error: Exception) -> bool:
    """Of jaxlib, whose error is a RuntimeError; it is not imported here."""
    is_out = str(error).startswith("RESOURCE_EXHAUSTED") or "Out of memory allocating" in str(error)
    return type(error).__name__ == "JaxRuntimeError" and is_out


def _call(function: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    try:
        return function(argv) or 0
    except Help as text:
        print(text)
    return 0


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """A context for the imports of a command: Python looks for no rubbish in what will stay, then nor ever again.

    Seen of mm01-generate: 0.1 s of its imports, 0.3 of tracing. A process that has imported jax before has rubbish of
    its own, which would stay as well.
    """
    if "jax" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def going_on_without_a_reader() -> Iterator[None]:
    """A context in which what stdout does not take, because its reader has gone or its disk is full, is left out."""
    with _stdout_as(_Forgiving):
        try:
            yield
        finally:
            sys.stdout.flush()


@contextlib.contextmanager
def _stdout_as(kind: type["_Named"]) -> Iterator[None]:
    before = sys.stdout
    sys.stdout = kind(before)
    try:
        yield
    finally:
        sys.stdout = before


class _Named(io.TextIOBase):
    """A text stream whose errors of writing have its name."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return self._stream.encoding

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        error.filename = error.filename or "stdout"
        raise error


class _Forgiving(_Named):
    """A text stream; the first error of writing is said on stderr, the rest goes nowhere."""

    def _failed(self, error: OSError) -> None:
        _say(f"stdout: {error.strerror}; what is said there is left out from here on")
        _drop(self._stream)


def _open_what_is_closed() -> None:
    """A standard stream that the caller has closed (`>&-`) is None in Python."""
    for stream, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, mode))  # noqa: SIM115 - it is open as long as the process


def _say(text: str) -> None:
    """On stderr, where that can still be written."""
    try:
        print(text, file=sys.stderr)
    except OSError:
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Lets what a stream still holds go nowhere: Python would try again when it shuts down, and end with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _drop_what_cannot_be_written() -> None:
    try:
        sys.stdout.flush()
    except OSError:  # of a full disk
        _drop(sys.stdout)


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
    nearest = nearest or (similar(module, commands, cutoff=0) or commands)[0]
    allowed = f"{', '.join(commands)}; nearest: {nearest} (see --help)"
    print(f"python -m: got {module}, which is no command; allowed: {allowed}", file=sys.stderr)
    sys.exit(TYPED)


def exit_code(error: Exception) -> int | None:
    """The exit code of an error that a person can act on, None of a bug."""
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        return DISK
    if _is_of_another_process(error):
        return job.Gone.exit_code
    if isinstance(error, PermissionError):
        return FileError.exit_code
    typed = isinstance(error, ValueError | OSError | MemoryError | flags.Error) or _is_out_of_memory(error)
    return getattr(error, "exit_code", TYPED if typed else None)
