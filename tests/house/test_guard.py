"""What describes weights is read within bounds of processor time and memory, whatever it is (mm01_jax/guard.py)."""

import sys
import time

import pytest

from mm01_jax import guard
from mm01_jax.files import FileError


def _spin(seconds: float) -> int:
    begun, turns = time.thread_time(), 0
    while time.thread_time() - begun < seconds:
        turns += 1
    return turns


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(guard, "SECONDS", 0.3)
    monkeypatch.setattr(guard, "_LONG", 0.2)
    monkeypatch.setattr(guard, "_spent", {})


def test_reading_that_takes_too_long_is_refused_by_name(tmp_path):
    begun = time.thread_time()
    words = rf"{tmp_path}: .* takes more than 0.3 s of processor time"
    with pytest.raises(FileError, match=words), guard.reading(tmp_path):
        _spin(30)
    assert time.thread_time() - begun < 5
    _spin(0.5)  # nothing comes later


def test_reading_that_goes_on_after_errors_is_refused(tmp_path):
    tries = 0
    with pytest.raises(FileError, match="processor time"), guard.reading(tmp_path):
        for _ in range(100):
            try:
                tries += 1
                _spin(30)
            except Exception:  # noqa: S112 - as of steps that are passed over
                continue
    assert tries == 1


def test_reading_that_fills_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "BYTES", 64 * 2**20)
    kept = []
    with pytest.raises(FileError, match="64 MiB of memory"), guard.reading(tmp_path):
        while True:
            kept.append(bytearray(b"x" * 2**20))
            time.sleep(0.001)
    assert len(kept) < 1000


def test_what_one_command_opens_several_times_counts_together(tmp_path):
    with guard.reading(tmp_path):
        _spin(0.25)
    with pytest.raises(FileError), guard.reading(tmp_path):
        _spin(0.25)


def test_short_readings_of_a_long_session_do_not_count_together(tmp_path):
    for _ in range(20):
        with guard.reading(tmp_path):
            _spin(0.05)


def test_the_outermost_counts(tmp_path):
    with pytest.raises(FileError, match=f"{tmp_path}:"), guard.reading(tmp_path):
        for _ in range(100):
            with guard.reading(tmp_path / "inside"):
                _spin(0.05)


def test_an_error_of_the_reading_itself_is_what_is_raised(tmp_path):
    with pytest.raises(KeyError), guard.reading(tmp_path):
        raise KeyError("its own")
    with guard.reading(tmp_path):
        pass


@pytest.mark.parametrize("pause", [0.0, 0.0003, 0.001])
def test_a_reading_that_ends_as_its_bound_comes_leaves_nothing_behind(tmp_path, monkeypatch, pause):
    """The interruption may come at any instruction of the context itself: 60 that end within a look of the bound."""
    monkeypatch.setattr(guard, "_LONG", 9.0)
    monkeypatch.setattr(guard, "SECONDS", 0.01)
    monkeypatch.setattr(guard, "_EVERY", 0.001)
    before, refused = sys.getswitchinterval(), 0
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(60):
            try:
                with guard.reading(tmp_path):
                    _spin(0.01 + pause)
            except FileError:
                refused += 1
            _spin(0.002)
    finally:
        sys.setswitchinterval(before)
    assert guard._inside.watch is None
    assert refused or not pause
