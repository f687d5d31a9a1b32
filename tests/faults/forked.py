"""Calls in a process of their own that costs no import: its exit code, what it said, its time, memory and writes.

A server imports what is heavy once and forks for every call, so a command takes milliseconds, not the seconds that
Python and jax take to start. Nothing in the server may start a thread or a backend before it forks.

    with Server("mm01_jax.loading") as server:
        ended = server.call("tests.faults.opened:run", str(path), room=room)
"""

import contextlib
import importlib
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
PAGE = resource.getpagesize()
MOST_MEMORY = 4 << 30  # a child that has more is killed, so that the machine survives what is tested
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events that change what is on a disk -> which of their arguments are paths, and which a folder's descriptor.
CHANGES = {
    "os.remove": ((0,), 1),
    "os.rmdir": ((0,), 1),
    "os.mkdir": ((0,), 2),
    "os.rename": ((1,), 3),
    "os.link": ((1,), 3),
    "os.symlink": ((1,), 2),
    "os.truncate": ((0,), None),
    "os.chmod": ((0,), 2),
    "os.utime": ((0,), 3),
}


class Ended(NamedTuple):
    """How a call ended.

    code: as of a process; negative is a signal. hung: it was killed when its time was up. memory: bytes of resident
    memory at its peak, less those at its start. outside: paths outside the folders allowed that it wrote or deleted.
    said: on stdout; complained: on stderr. processor: seconds of it, which a busy machine does not change as it does
    `seconds`.
    """

    code: int
    said: str
    complained: str
    seconds: float
    processor: float
    hung: bool
    memory: int
    outside: list[str]

    @property
    def told(self) -> str:
        return self.said + self.complained


class Server:
    """imports: modules that every call finds imported."""

    def __init__(self, *imports: str, environment: dict[str, str] | None = None):
        command = [sys.executable, "-m", "tests.faults.forked", *imports]
        settings = {
            "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(tempfile.gettempdir()) / "mm01_jax_compiled_by_faults")
        }
        settings |= {
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        settings |= os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"} | (environment or {})
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, cwd=ROOT, env=settings, **pipes)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def call(self, function: str, *arguments: str, room: pathlib.Path, seconds: float = 60.0) -> Ended:
        """Calls "module:function" with texts in a child; what it returns is the exit code, None is 0.

        Args:
          room: it may write below room/in, room/out and room/tmp, and in the folder of compiled programs.
        """
        asked = {"function": function, "arguments": arguments, "room": str(room), "seconds": seconds}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the server of forked calls ended with {self._process.wait()}")
        return Ended(**json.loads(answer))


def _serve(imports: list[str]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    for name in imports:
        importlib.import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        room = pathlib.Path(asked["room"])
        (room / "tmp").mkdir(exist_ok=True)
        for name in ("said", "complained", "report"):
            (room / "tmp" / name).unlink(missing_ok=True)
        for name in ("said", "complained"):
            (room / "tmp" / name).touch()
        pid = os.fork()
        if pid == 0:
            _child(asked, room)
        answers.write(json.dumps(_wait(pid, asked["seconds"], room)) + "\n")
        answers.flush()


def _wait(pid: int, seconds: float, room: pathlib.Path) -> dict:
    start, hung, most, base = time.monotonic(), False, 0, None
    while True:
        ended, status, used = os.wait4(pid, os.WNOHANG)
        passed = time.monotonic() - start
        if ended:
            break
        base, most = _resident(pid, base, most)
        if passed > seconds or most > MOST_MEMORY:
            hung = passed > seconds
            os.kill(pid, signal.SIGKILL)
            _, status, used = os.wait4(pid, 0)
            break
        time.sleep(0.002 if passed < 0.5 else 0.02)
    said, complained = ((room / "tmp" / name).read_bytes().decode(errors="replace") for name in ("said", "complained"))
    report = room / "tmp" / "report"
    notes = json.loads(report.read_text()) if report.exists() else {"memory": max(0, most - (base or 0)), "outside": []}
    code = os.waitstatus_to_exitcode(status)
    times = {"seconds": passed, "processor": used.ru_utime + used.ru_stime}
    return {"code": code, "said": said, "complained": complained, "hung": hung, **times, **notes}


def _resident(pid: int, base: int | None, most: int) -> tuple[int | None, int]:
    """(resident bytes when first seen, most so far) of a process."""
    with contextlib.suppress(OSError, IndexError):
        now = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
        return now if base is None else base, max(most, now)
    return base, most


def _child(asked: dict, room: pathlib.Path) -> None:
    """Never returns."""
    code = 1
    try:
        os.setsid()
        for fd, name in ((1, "said"), (2, "complained")):
            os.dup2(os.open(room / "tmp" / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ |= {"TMPDIR": str(room / "tmp"), "MPLCONFIGDIR": str(room / "tmp")}
        base = _peak_from_now()
        outside = _watch_writes(room)
        code = _run(asked["function"], asked["arguments"])
        sys.stdout.flush()
        notes = {"memory": max(0, _status("VmHWM") - base), "outside": sorted(set(outside))}
        (room / "tmp" / "report").write_text(json.dumps(notes))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _run(function: str, arguments: list[str]) -> int:
    module, _, name = function.partition(":")
    try:
        code = getattr(importlib.import_module(module), name)(*arguments)
        return 0 if code is None else code
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1


def _watch_writes(room: pathlib.Path) -> list[str]:
    """A list that gets every path outside the folders allowed that Python opens to write, renames or deletes."""
    allowed = [os.path.realpath(room / name) for name in ("in", "out", "tmp")]
    allowed += [os.path.realpath(os.environ[k]) for k in ("JAX_COMPILATION_CACHE_DIR",) if k in os.environ]
    found: list[str] = []

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            paths, folder = (arguments[0],), None
        elif event in CHANGES:
            chosen, at = CHANGES[event]
            paths, folder = [arguments[i] for i in chosen], arguments[at] if at is not None else None
        else:
            return
        for path in paths:
            real = _real(path, folder)
            if real and not any(f"{real}/".startswith(f"{place}/") for place in [*allowed, "/dev"]):
                found.append(f"{event} {real}")

    sys.addaudithook(hook)
    return found


def _real(path, folder: int | None) -> str | None:
    """Where a path leads, the last link not followed as it is the link that is made or removed."""
    if isinstance(path, int):
        return None
    path = os.fsdecode(path)
    if isinstance(folder, int) and folder >= 0:
        path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    parent, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(parent), name)


def _peak_from_now() -> int:
    """Resident bytes; the peak is counted from here on where the system lets it."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    _serve(sys.argv[1:])
