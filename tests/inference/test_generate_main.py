"""The generate command: what it prints and how it refuses."""

import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from mm01_jax.convert import table
from mm01_jax.convert.sources import open_source
from mm01_jax.inference import __main__ as inference
from mm01_jax.loading import load
from tests import small
from tests.train import cheap_run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The work directory of a run of one step."""
    with pytest.MonkeyPatch.context() as patch:
        cheap_run.use(patch)
        workdir = tmp_path_factory.mktemp("run")
        cheap_run.run(workdir, small.config(small.write_text(workdir / "text"), train__steps=1))
    return workdir


@pytest.fixture(autouse=True)
def flags_defined_once(monkeypatch):
    if "prompt" not in flags.FLAGS:
        inference._define_flags()
    monkeypatch.setattr(inference, "_define_flags", lambda: None)


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    with flagsaver.flagsaver():
        code = inference.main(["generate", *arguments])
    return code, *capsys.readouterr()


def test_the_command_prints_the_prompt_and_text_and_the_same_seed_prints_it_again(checkpoint, capsys):
    arguments = (f"--checkpoint={checkpoint}", "--prompt=def é", "--max_tokens=20", "--seed=5", "--temperature=1")
    first, again = command(capsys, *arguments), command(capsys, *arguments)
    assert first == again
    code, out, err = first
    assert (code, err) == (0, "")
    assert out.startswith("def é")
    assert len(out) > len("def é\n")
    assert out.endswith("\n")


def test_a_checkpoint_loads_whatever_conversion_knows_of_its_mixers(checkpoint, monkeypatch):
    monkeypatch.setattr(table, "MIXERS", {})
    with small.one_device():
        loaded = load(str(checkpoint))
    assert loaded.model.config == loaded.config.model
    with pytest.raises(ValueError, match="layers of kind 'lightning' have no row in convert/table.py"):
        open_source(checkpoint)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "--checkpoint is missing"),
        (("--checkpoint=runs/tiny",), "--prompt is missing"),
        (("--checkpoint=runs/tiny", "--prompt="), "--prompt is missing or empty"),
        (("--checkpoint=runs/tiny", "--prompt=def", "main"), "'main' is no flag"),
        (("--checkpoint=runs/tiny", "--prompt=x", "--max_tokens=0"), "max_tokens"),
        (("--checkpoint=runs/tiny", "--prompt=x", "--max_tokens=many"), "max_tokens"),
        (("--checkpoint=runs/tiny", "--prompt=x", "--seed=-1"), "seed"),
        (("--checkpoint=runs/tiny", "--prompt=x", "--top_k=-1"), "top_k=-1"),
        (("--checkpoint=runs/tiny", "--prompt=x", "--top_p=0"), "top_p=0"),
        (("--checkpoint=runs/tiny", "--prompt=x", "--temperature=nan"), "temperature=nan"),
        (("--checkpoint=runs/tiny", "--prompt=x", "--temprature=1"), "temprature"),
    ],
)
def test_wrong_flags_are_refused_in_one_line_by_name(capsys, arguments, named):
    code, out, err = command(capsys, *arguments)
    assert (code, out) == (2, "")
    assert named in err
    assert len(err.strip().splitlines()) == 1


def test_a_missing_or_damaged_checkpoint_is_refused_by_its_place(checkpoint, tmp_path, capsys):
    code, out, err = command(capsys, f"--checkpoint={tmp_path}", "--prompt=x")
    assert (code, out) == (3, "")
    assert err == f"{tmp_path}: no checkpoint here\n"
    cheap_run.damage(checkpoint, 1, leaf="model.embed")
    code, out, err = command(capsys, f"--checkpoint={checkpoint}", "--prompt=x")
    assert (code, out) == (3, "")
    assert "embed" in err


def test_help_lists_the_flags_without_an_error():
    process = subprocess.run(
        [sys.executable, "-m", "mm01_jax.inference", "--help"], capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    for flag in ("--checkpoint", "--prompt", "--temperature", "--top_p", "--seed"):
        assert flag in process.stdout
