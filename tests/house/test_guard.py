"""What describes weights is read within bounds of processor time and memory, whatever it is (mm01_jax/guard.py)."""

import sys
import threading
import time

import pytest

from mm01_jax import guard
from mm01_jax.files import FileError


def _spin(seconds: float) -> float:
    begun = time.thread_time()
    while time.thread_time() - begun < seconds:
        pass
    return seconds


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(guard, "SECONDS", 0.3)
    monkeypatch.setattr(guard, "_LONG", 0.2)
    monkeypatch.setattr(guard, "_spent", {})


def test_reading_that_takes_too_long_is_refused_by_name(tmp_path):
    begun = time.thread_time()
    with pytest.raises(FileError, match=rf"{tmp_path}: .* takes more than 0.3 s of processor time"):
        guard.reading(tmp_path, lambda: _spin(30))
    assert time.thread_time() - begun < 5
    _spin(0.5)  # nothing comes later


def test_reading_that_goes_on_after_errors_is_refused(tmp_path):
    tries = []

    def read() -> None:
        for _ in range(100):
            try:
                tries.append(None)
                _spin(30)
            except Exception:  # noqa: S112 - as of steps that are passed over
                continue

    with pytest.raises(FileError, match="processor time"):
        guard.reading(tmp_path, read)
    assert len(tries) == 1


def test_reading_that_fills_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "BYTES", 64 * 2**20)
    kept = []

    def read() -> None:
        while True:
            kept.append(bytearray(b"x" * 2**20))
            time.sleep(0.001)

    with pytest.raises(FileError, match="64 MiB of memory"):
        guard.reading(tmp_path, read)
    assert len(kept) < 1000


def test_what_one_command_opens_several_times_counts_together(tmp_path):
    assert guard.reading(tmp_path, lambda: _spin(0.25)) == 0.25
    with pytest.raises(FileError):
        guard.reading(tmp_path, lambda: _spin(0.25))


def test_short_readings_of_a_long_session_do_not_count_together(tmp_path):
    for _ in range(20):
        guard.reading(tmp_path, lambda: _spin(0.05))


def test_the_outermost_counts(tmp_path):
    def read() -> None:
        for _ in range(100):
            guard.reading(tmp_path / "inside", lambda: _spin(0.05))

    with pytest.raises(FileError, match=f"{tmp_path}:"):
        guard.reading(tmp_path, read)


def test_an_error_of_the_reading_itself_is_what_is_raised(tmp_path):
    with pytest.raises(ZeroDivisionError):
        guard.reading(tmp_path, lambda: 1 / 0)
    assert guard.reading(tmp_path, lambda: 1) == 1


@pytest.mark.parametrize("more", [0.0, 0.0003, 0.001])
def test_a_reading_that_ends_as_its_bound_comes_leaves_nothing_behind(tmp_path, monkeypatch, more):
    """An interruption may come at any instruction: 60 readings that end within a look of the bound."""
    monkeypatch.setattr(guard, "_LONG", 9.0)
    monkeypatch.setattr(guard, "SECONDS", 0.01)
    monkeypatch.setattr(guard, "_EVERY", 0.001)
    before, refused = sys.getswitchinterval(), 0
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(60):
            try:
                guard.reading(tmp_path, lambda: _spin(0.01 + more))
            except FileError:
                refused += 1
            _spin(0.002)
    finally:
        sys.setswitchinterval(before)
    assert guard._running is None
    assert refused or not more


def test_another_thread_is_not_interrupted(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(guard.reading(tmp_path, lambda: _spin(0.5))))
    thread.start()
    thread.join()
    assert done
