"""One writer per work directory, whoever comes, dies or races."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from mm01_jax.checkpoint import Checkpoints, Locked, RunLock, lock
from tests.slow import slow_but

# Only the lock's own file, so that a contender starts in milliseconds and not in the seconds that importing jax takes.
CONTENDER = """
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("lock", sys.argv[1])
lock = importlib.util.module_from_spec(spec); spec.loader.exec_module(lock)
while time.time() < float(sys.argv[3]): pass
try:
    held = lock.RunLock(sys.argv[2])
except lock.Locked as error:
    print("refused", error, flush=True)
else:
    print("won", flush=True)
    sys.stdin.read()
"""


def contender(workdir, at: float = 0.0) -> subprocess.Popen:
    command = [sys.executable, "-c", CONTENDER, lock.__file__, str(workdir), str(at)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def end(process: subprocess.Popen) -> None:
    process.communicate()


def test_a_second_writer_is_refused_within_two_seconds_with_pid_host_and_start(tmp_path):
    first = contender(tmp_path)
    assert first.stdout.readline() == "won\n"
    start = time.monotonic()
    with pytest.raises(Locked, match=rf"process {first.pid} on {os.uname().nodename}, started \d{{4}}-"):
        Checkpoints(tmp_path)
    assert time.monotonic() - start < 2
    end(first)
    Checkpoints(tmp_path).close()


def test_a_second_writer_in_the_same_process_is_refused_until_the_first_closes(tmp_path):
    with Checkpoints(tmp_path), pytest.raises(Locked, match=f"process {os.getpid()} "):
        Checkpoints(tmp_path)
    Checkpoints(tmp_path).close()


def test_the_lock_of_a_killed_writer_is_free_at_once(tmp_path):
    process = contender(tmp_path)
    assert process.stdout.readline() == "won\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    RunLock(tmp_path).close()
    end(process)


def test_a_forked_child_does_not_keep_the_lock_of_its_parent(tmp_path):
    fork = "    import os; os.fork() or (print('forked', flush=True), time.sleep(5)); os._exit(0)"
    script = CONTENDER.replace("    sys.stdin.read()", fork)
    command = [sys.executable, "-c", script, lock.__file__, str(tmp_path), "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "won\n"
    assert process.stdout.readline() == "forked\n"  # the child is there, and has closed its copy
    process.wait(timeout=20)
    RunLock(tmp_path).close()
    process.stdout.close()


@pytest.mark.parametrize("races", slow_but([4], [4, 20]))
def test_races_have_one_winner_each(races, tmp_path):
    for race in range(races):
        at = time.time() + 0.25
        processes = [contender(tmp_path / str(race), at) for _ in range(3)]
        lines = [process.stdout.readline().split()[0] for process in processes]
        for process in processes:
            end(process)
        assert sorted(lines) == ["refused", "refused", "won"], race


def test_a_fresh_lock_of_another_host_is_honoured_and_a_stale_one_taken_over(tmp_path):
    path = tmp_path / RunLock.NAME
    path.write_text('{"pid": 1, "host": "elsewhere", "start": "then", "id": "x"}')
    with pytest.raises(Locked, match="process 1 on elsewhere, started then, wrote here .* delete this file"):
        RunLock(tmp_path)
    os.utime(path, (4e9, 4e9))
    with pytest.raises(Locked, match="wrote here in the future, .* gone, delete this file"):
        RunLock(tmp_path)
    long_ago = time.time() - 2 * lock._STALE_SECONDS
    os.utime(path, (long_ago, long_ago))
    held = RunLock(tmp_path)
    held.check()
    path.write_text('{"pid": 2, "host": "elsewhere", "start": "now", "id": "y"}')
    with pytest.raises(Locked, match="process 2 on elsewhere.* took over"):
        held.check()
    held.close()
    assert "elsewhere" in path.read_text()  # not ours any more, so not ours to clear


def test_the_holder_beats_so_that_other_hosts_see_it_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.05)
    held = RunLock(tmp_path)
    path = pathlib.Path(tmp_path) / RunLock.NAME
    os.utime(path, (1, 1))
    deadline = time.monotonic() + 10
    while path.stat().st_mtime < 1000 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.stat().st_mtime > 1000
    held.close()


def test_a_beat_never_meets_a_closed_file_and_goes_on_after_an_error_of_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.01)
    begun, seen = threading.Event(), []

    def slow(fd):
        begun.set()
        time.sleep(0.2)
        try:
            os.fstat(fd)
            seen.append("open")
        except OSError:
            seen.append("closed")
        raise OSError(errno.EIO, "of a disk that is away")

    monkeypatch.setattr(lock.os, "utime", slow)
    held = RunLock(tmp_path)
    deadline = time.monotonic() + 20
    while len(seen) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    begun.clear()
    assert begun.wait(20)
    held.close()
    count = len(seen)
    time.sleep(0.3)
    assert len(seen) == count >= 3 and set(seen) == {"open"}
