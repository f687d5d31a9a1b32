"""The compile cache: filled by one process, used by the next, left alone where set, absent where it cannot be."""

import os
import subprocess
import sys
import time
import warnings

import jax
import pytest

from mm01_jax import compile_cache

COMPILES = """
import logging, jax
from mm01_jax import compile_cache
compile_cache.use()
jax.jit(lambda x: jax.numpy.linalg.eigh(x @ x)[0].sum())(jax.numpy.ones((40, 40))).block_until_ready()
"""


def compiled(folder) -> str:
    """What a process that compiles with its cache in this folder says, with jax's log."""
    kept = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    done = subprocess.run(
        [sys.executable, "-c", COMPILES],
        env=kept
        | {
            "JAX_LOG_COMPILES": "1",
            "XDG_CACHE_HOME": str(folder),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # however fast this machine is
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


def entries(folder) -> list:
    return sorted(folder.glob("mm01_jax/compiled-*/*-cache"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache folder that one process has filled, and what the next one said."""
    folder = tmp_path_factory.mktemp("cache")
    compiled(folder)
    return folder, compiled(folder)


def test_the_second_process_compiles_nothing(filled):
    folder, said = filled
    assert entries(folder)
    assert "cache hit for 'jit__lambda'" in said
    assert "cache miss" not in said.lower()


def test_a_half_written_entry_is_dropped_and_written_again(filled):
    folder, _ = filled
    entry = next(path for path in entries(folder) if path.name.startswith("jit__lambda"))
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    os.utime(entry, (time.time() - 3600,) * 2)
    entry.with_name(entry.name.removesuffix("-cache") + "-atime").unlink()
    said = compiled(folder)
    assert "Error reading" not in said
    assert entry.stat().st_size > len(whole) // 2


def test_a_cache_that_the_user_has_set_is_left_so(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir  # tests/conftest.py sets it
    compile_cache.use()
    assert before == jax.config.jax_compilation_cache_dir
    assert not list(tmp_path.iterdir())


@pytest.fixture
def unset():
    """jax as if nobody had set a cache."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_enable_compilation_cache", True)  # what cannot be written switches it off


def test_a_cache_that_the_user_has_switched_off_is_left_so(unset, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_enable_compilation_cache", False)
    compile_cache.use()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_said_and_there_is_no_cache(unset, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said = []
    compile_cache.use(said.append)
    assert len(said) == 1
    assert said[0].startswith("no compile cache, every start compiles anew: ")
    assert jax.config.jax_compilation_cache_dir is None


def test_entries_that_cannot_be_read_or_written_are_said_once_each_in_a_line(monkeypatch):
    said, shown = [], []
    monkeypatch.setattr(warnings, "showwarning", lambda *given: shown.append(str(given[0])))
    compile_cache._warn_once(said.append)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for program in ("jit_a", "jit_b"):
            for what in ("writing", "reading"):
                warnings.warn(
                    f"Error {what} persistent compilation cache entry for '{program}': OSError: full", stacklevel=1
                )
        warnings.warn("something else", stacklevel=1)
    assert shown == ["something else"]
    assert said == [
        "a compiled program cannot be written: OSError: full; what cannot is compiled anew",
        "a compiled program cannot be read: OSError: full; what cannot is compiled anew",
    ]


def test_without_xdg_the_folder_lies_in_the_home(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compile_cache.default_folder().parent == tmp_path / ".cache" / "mm01_jax"


def test_a_folder_of_one_s_own_that_cannot_be_written_is_said_once(tmp_path):
    (tmp_path / "file").write_text("")
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "file" / "cache")}
    done = subprocess.run([sys.executable, "-c", COMPILES], env=environment, capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert line.startswith("no compile cache, every start compiles anew: ") and str(tmp_path / "file") in line


def test_a_folder_of_one_s_own_that_is_only_read_is_used(unset, tmp_path, monkeypatch):
    def read_only(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(compile_cache.tempfile, "TemporaryFile", read_only)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    said = []
    compile_cache.use(said.append)
    assert said == [] and jax.config.jax_enable_compilation_cache
