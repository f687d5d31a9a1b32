"""One writer per work directory.

The lock is flock on a file that is never deleted, so a dead process's lock is free at once and races have one winner.
flock may not reach across hosts on a network file system, so the file also names its holder, who touches it every half
minute: another host's lock is honoured while it is fresh and taken over once it is stale.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
import uuid

from mm01_jax import files

_BEAT_SECONDS = 30.0
_STALE_SECONDS = 300.0


class Locked(Exception):
    """Another process writes to this work directory; the message says which."""

    exit_code = 2


class RunLock:
    """Held from construction until `close`, or until the process ends in whatever way.

    Raises:
      Locked: another writer holds it; names pid, host and start time.
    """

    NAME = "run.lock"

    def __init__(self, workdir):
        self._path = pathlib.Path(workdir) / self.NAME
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._fd = files.update(self._path)
        except OSError as error:
            if error.errno in files.OF_THE_DISK:
                raise
            raise Locked(f"{self._path}: cannot be locked: {error.strerror}") from error
        self._id = uuid.uuid4().hex
        try:
            self._acquire()
        except BaseException:
            os.close(self._fd)
            raise
        self._closed, self._beating = threading.Event(), threading.Lock()
        # A forked child shares the lock and could outlive us with it: closing its copy leaves ours held.
        os.register_at_fork(after_in_child=self._forget)
        threading.Thread(target=self._beat, name="run lock", daemon=True).start()

    def _acquire(self):
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(f"{self._path}: {_describe(self._holder())} is writing to this directory") from None
        except OSError as error:
            raise Locked(f"{self._path}: this file system has no file locks ({error.strerror}); use another") from error
        holder = self._holder()
        if holder.get("host", socket.gethostname()) != socket.gethostname() and (age := self._age()) < _STALE_SECONDS:
            when, does = f"{age:.0f} s ago", f"wait {_STALE_SECONDS:.0f} s or delete this file"
            if age < 0:  # a clock was set: a living holder's next beat is of today
                when, does = "in the future, by the clock of this file system", "delete this file"
            raise Locked(f"{self._path}: {_describe(holder)} wrote here {when}; if that host is gone, {does}")
        me = {"pid": os.getpid(), "host": socket.gethostname(), "id": self._id}
        self._replace(me | {"start": time.strftime("%Y-%m-%d %H:%M:%S %z")})

    def check(self) -> None:
        """Raises Locked if another host took over in the meantime (we were suspended for minutes)."""
        if self._holder().get("id") != self._id:
            raise Locked(f"{self._path}: {_describe(self._holder())} took over this directory")

    def close(self) -> None:
        """Frees the lock."""
        if not self._closed.is_set():
            with self._beating:  # the number of a closed file is soon another file's
                self._closed.set()
            with contextlib.suppress(Locked, OSError):  # a full disk, or one that is gone, holds no lock either
                self.check()
                self._replace({})
            os.close(self._fd)

    def _replace(self, holder: dict):
        try:
            os.pwrite(self._fd, json.dumps(holder).encode().ljust(512), 0)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def _holder(self) -> dict:
        try:
            holder = files.parse_json(os.pread(self._fd, 512, 0) or b"{}")
        except ValueError:  # read in the middle of the holder's first write
            return {}
        return holder if isinstance(holder, dict) else {}

    def _age(self) -> float:
        """Seconds since the holder's last beat, by the file system's own clock."""
        probe = self._path.with_name(f".{self.NAME}.{self._id}")
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now - os.fstat(self._fd).st_mtime

    def _beat(self):
        while not self._closed.wait(_BEAT_SECONDS):
            with self._beating, contextlib.suppress(OSError):  # of a network disk that is away: the next may succeed
                if not self._closed.is_set():
                    os.utime(self._fd)

    def _forget(self):
        if not self._closed.is_set():
            self._closed.set()
            os.close(self._fd)


def _describe(holder: dict) -> str:
    if not holder:
        return "another process"
    pid, host, start = (files.shown(holder.get(key, "unknown")) for key in ("pid", "host", "start"))
    return f"process {pid} on {host}, started {start},"
