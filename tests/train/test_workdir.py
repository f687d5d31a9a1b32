"""A work directory that cannot be used is refused in one line before jax is imported, and nothing is left behind."""

import os
import pathlib
import sys

import pytest

from mm01_jax.train.__main__ import main

WRONG = {
    "a file": lambda root: root / "file",
    "below a file": lambda root: root / "file" / "run",
    "a broken link": lambda root: root / "broken",
    "a link to itself": lambda root: root / "loop",
    "a name that is too long": lambda root: root / ("x" * 300),
    "nothing that can be made": lambda root: pathlib.Path("/proc/run"),
    "a device": lambda root: pathlib.Path("/dev/null"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(wrong, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mm01_jax.train.loop", None)  # it must not come so far
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = sorted(os.listdir(tmp_path))
    workdir = WRONG[wrong](tmp_path)
    assert main(["--config=tiny", f"--workdir={workdir}"]) in (2, 74)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("mm01-train: refused: --workdir: got ")
    assert "allowed: a folder that can be made and written (" in err
    assert sorted(os.listdir(tmp_path)) == before
