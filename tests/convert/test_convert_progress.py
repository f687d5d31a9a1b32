"""Progress is said within a large tensor, not only after it."""

import re

import pytest

from mm01_jax.convert import parallel, progress
from mm01_jax.convert.check import check
from mm01_jax.convert.from_torch import from_torch
from mm01_jax.convert.to_torch import to_torch
from mm01_jax.convert.torch import files
from tests.convert import samples

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
QUIET = {"log": lambda line: None}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """The embedding and the head, 1,024 bytes each, are large; a block is 256 bytes; every report is printed."""
    monkeypatch.setattr(parallel, "BIG_BYTES", 1024)
    monkeypatch.setattr(files, "_BLOCK_BYTES", 256)
    monkeypatch.setattr(progress, "_EVERY_SECONDS", 0.0)
    return samples.make(tmp_path / "in")


def test_conversion_reports_bytes_within_a_tensor(source, tmp_path, capsys):
    from_torch(source, tmp_path / "ours", **QUIET)
    said = capsys.readouterr().err.splitlines()
    assert samples.tensors("original")[EMBED].nbytes == 1024
    assert said[0] == f"from-torch: {EMBED}, 1.0 kB, worked on alone"
    assert [line.split(" of ")[0] for line in said[1:4]] == [f"from-torch: {n} bytes" for n in (256, 512, 768)]


def test_bytes_reported_add_up_to_all_in_a_first_run_and_in_a_resumed_one(source, tmp_path, monkeypatch, capsys):
    total = sum(w.nbytes for w in samples.tensors("original").values())
    added = []
    count = progress.Progress.add
    monkeypatch.setattr(progress.Progress, "add", lambda self, n: (added.append(n), count(self, n))[1])
    with monkeypatch.context() as patch:
        patch.setattr("mm01_jax.checkpoint.ArrayWriter.finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            from_torch(source, tmp_path / "ours", **QUIET)
    assert sum(added) == total
    added.clear()
    from_torch(source, tmp_path / "ours", **QUIET)
    assert sum(added) == total


def test_every_command_names_a_large_tensor_when_it_begins(source, tmp_path, capsys):
    from_torch(source, tmp_path / "ours", **QUIET)
    to_torch(tmp_path / "ours", tmp_path / "out", **QUIET)
    check(tmp_path / "out", **QUIET)
    big = {name for name, w in samples.tensors("original").items() if w.nbytes >= 1024}
    assert {EMBED, HEAD} < big
    said = capsys.readouterr().err
    for command in ("from-torch", "to-torch", "check"):
        assert set(re.findall(rf"{command}: (\S+), \d.* worked on alone", said)) == big


def test_small_tensors_are_not_named(source, tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    from_torch(source, tmp_path / "ours", **QUIET)
    assert "alone" not in capsys.readouterr().err
