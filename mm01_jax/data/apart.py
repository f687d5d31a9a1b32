"""A program of ours in a process of its own, asked over pipes: a stranger's file that ends a library ends that one.

A request and an answer are a line of JSON, which says the `size` of what follows, and so many bytes. The program reads
the whole of a request before it answers, so that neither waits for the other; it ends when its stdin does.
"""

import atexit
import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from mm01_jax.data.text import DataError
from mm01_jax.files import parse_json

_PASSED = ("LD_LIBRARY_PATH", "PYTHONHOME")  # without which some Pythons do not start
_READ = 1 << 20
_KEPT = 8  # processes of a pool that have nothing to do


class Ended(Exception):
    """It has ended instead of answering; the words say how."""


class Process:
    """program: what Python is to run. `memory`: MiB that it is told it may take, for the words of its end."""

    def __init__(self, program: list[str], environment: dict[str, str]):
        self.memory, self._buffer = 0, bytearray()
        passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
        passed |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environment
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        # A session of its own: signals of a terminal are for the command, which may go on for a while.
        python = [sys.executable, "-s", "-P"]
        self._process = subprocess.Popen([*python, *program], env=passed, start_new_session=True, **pipes)
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError, AttributeError):  # where none may be as large, or no system call makes it
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _READ)

    def is_there(self) -> bool:
        """Whether it has not ended by itself."""
        return self._process.poll() is None

    def say(self, head: dict[str, Any], content: bytes = b"") -> None:
        """Raises Ended."""
        try:
            for part in (json.dumps(head | {"size": len(content)}).encode() + b"\n", content):
                self._process.stdin.write(part)
            self._process.stdin.flush()
        except OSError:
            raise Ended(self.end()) from None

    def hear(self, seconds: float) -> tuple[dict[str, Any], bytes]:
        """An answer, for which it has so many seconds; raises Ended."""
        deadline = time.monotonic() + seconds
        try:
            while (end := self._buffer.find(b"\n")) < 0:
                self._fill(deadline)
            head = parse_json(bytes(self._buffer[:end]))
            del self._buffer[: end + 1]
            while len(self._buffer) < head["size"]:
                self._fill(deadline)
            content = bytes(memoryview(self._buffer)[: head["size"]])
            del self._buffer[: head["size"]]
            return head, content
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            raise Ended(self.end()) from None
        except BaseException:
            self.end()
            raise

    def _fill(self, deadline: float) -> None:
        fd = self._process.stdout.fileno()
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        if not (piece := os.read(fd, _READ)):
            raise EOFError
        self._buffer += piece

    def end(self) -> str:
        """Ends it; why it could not answer."""
        process = self._process
        with contextlib.suppress(OSError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)  # it may be on its way out
        process.kill()
        code = process.wait()
        process.stdout.close()
        if code in (-signal.SIGXCPU, -signal.SIGKILL):
            return "takes too long"
        asked = f": damaged, or more than {self.memory:,} MiB asked for" if code == -signal.SIGABRT else ""
        return f"ended the library ({signal.Signals(-code).name if code < 0 else code}{asked})"


class Pool:
    """Processes of one program, as many as are asked at a time; program and environment as of `Process`."""

    def __init__(self, program: list[str], environment: dict[str, str]):
        self._program, self._environment, self._idle = program, environment, []
        atexit.register(self.end)

    @contextlib.contextmanager
    def asked(self, head: dict[str, Any], content: bytes = b"", *, seconds: float, memory: int) -> Iterator[Process]:
        """A process that has been asked, what it may take with it; kept where all of its answer has been heard.

        A DataError in the context is such an answer.
        """
        process = self._taken()
        process.memory = memory >> 20
        try:
            process.say(head | {"seconds": seconds, "bytes": memory}, content)
            yield process
        except DataError:
            self._keep(process)
            raise
        except BaseException:  # the rest of its answer is not wanted
            process.end()
            raise
        self._keep(process)

    def _taken(self) -> Process:
        with contextlib.suppress(IndexError):  # another thread may take the last
            while not (process := self._idle.pop()).is_there():
                process.end()
            return process
        return Process(self._program, self._environment)

    def _keep(self, process: Process) -> None:
        if len(self._idle) < _KEPT:
            self._idle.append(process)
        else:
            process.end()

    def end(self) -> None:
        """Ends those that have nothing to do."""
        while self._idle:
            self._idle.pop().end()
