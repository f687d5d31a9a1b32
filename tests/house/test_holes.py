"""mm01_jax/holes.py: files that are mostly holes are told from those that a file system keeps small."""

import contextlib
import os
import types

import pytest

from mm01_jax import holes

MIB = 2**20
pytestmark = pytest.mark.usefixtures("little")


@pytest.fixture
def little(monkeypatch):
    monkeypatch.setattr(holes, "LEAST", MIB)


@pytest.fixture
def spared(monkeypatch):
    """A file system that says of every file that it has no block, as one that compresses nearly does."""
    fstat = os.fstat
    monkeypatch.setattr(os, "fstat", lambda fd: types.SimpleNamespace(st_size=fstat(fd).st_size, st_blocks=0))


@contextlib.contextmanager
def written(path, *parts: int):
    """A file of so many bytes of data, of holes where a number is negative; open, and read a little."""
    with open(path, "wb") as file:
        for part in parts:
            file.write(b"x" * part) if part > 0 else file.seek(-part, os.SEEK_CUR)
        file.truncate()
    with open(path, "rb") as file:
        file.read(1)
        yield file


@pytest.mark.parametrize("parts", [(MIB, -(2**40)), (-3 * MIB, MIB), (MIB, -2 * MIB, MIB, -3 * MIB, MIB)])
def test_a_file_that_is_mostly_holes_is_refused_unread(tmp_path, parts):
    with written(tmp_path / "a", *parts) as file, pytest.raises(ValueError, match="is mostly holes: "):
        holes.refuse(file)


@pytest.mark.parametrize("parts", [(3 * MIB,), (4096, -MIB), (2 * MIB, -MIB, MIB, -2 * MIB, MIB), (MIB, -MIB)])
def test_a_file_of_few_holes_is_let_be_and_stands_where_it_stood(tmp_path, spared, parts):
    with written(tmp_path / "a", *parts) as file:
        holes.refuse(file)
        assert file.tell() == 1 and len(file.read()) == sum(map(abs, parts)) - 1


def test_of_a_file_system_that_knows_of_no_holes_nothing_is_refused(tmp_path, spared, monkeypatch):
    lseek = os.lseek

    def plain(fd, at, whence):
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(22, os.strerror(22))
        return lseek(fd, at, whence)

    monkeypatch.setattr(os, "lseek", plain)
    with written(tmp_path / "a", 4096, -(2**40)) as file:
        holes.refuse(file)
