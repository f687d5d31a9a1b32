"""What 0.1 wrote is refused in one line that names the version, by every command that opens it, and left as it is."""

import hashlib
import pathlib
import subprocess
import sys

import jax
import pytest

from mm01_jax import checkpoint
from mm01_jax.convert.__main__ import main as convert
from tests import small
from tests.train.cheap_run import exit_code

ROOT = pathlib.Path(__file__).parents[2]
OLD_CONFIG = (ROOT / "tests/fixtures/config_0_1.json").read_bytes()


@pytest.fixture
def old_run(tmp_path):
    """The step of a run as 0.1 wrote it: its config, and a manifest that has the right checksums and 0.1's paths."""
    state = tmp_path / "old/checkpoints/00000002/state"
    state.mkdir(parents=True)
    (state / "config.json").write_bytes(OLD_CONFIG)
    leaf = '{"shape": [2, 3, 64], "dtype": "float32", "stack": 2, "file": [2, 3, 64], "block": [1, 1, 64]}'
    body = (
        f'"format": "mm01-checkpoint-1", "step": 2, "tree_sha256": "{"0" * 64}", "meta": {{}}, "versions": '
        f'{{"mm01_jax": "0.1.0"}}, "files": {{"config.json": "{hashlib.sha256(OLD_CONFIG).hexdigest()}"}},\n'
        f'"leaves": {{\n"model/runs/0/input_norm": {leaf}\n}}}}\n'
    ).encode()
    (state / "manifest.json").write_bytes(b'{"sha256": "%s",\n' % hashlib.sha256(body).hexdigest().encode() + body)
    return tmp_path / "old"


def _generate(run, _):
    return _process("mm01_jax.inference", f"--checkpoint={run}", "--prompt=a")


def _perplexity(run, _):
    return _process("mm01_jax.evals", "perplexity", f"--checkpoint={run}")


def _process(*arguments: str) -> int:
    """The exit code of a command whose flags can be defined once a process."""
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    print(done.stderr, file=sys.stderr)
    return done.returncode


def _resume(run, _):
    return exit_code(run, small.config())


def _init_from(run, folder):
    return exit_code(folder / "new", small.config(), str(run))


def _check(run, _):
    return convert(["check", f"--source={run}"])


def _inspect(run, _):
    return convert(["inspect", f"--source={run}"])


def _to_torch(run, folder):
    return convert(["to-torch", f"--source={run}", f"--target={folder / 'torch'}"])


@pytest.mark.parametrize(
    "command", [_generate, _perplexity, _resume, _init_from, _check, _inspect, _to_torch], ids=lambda c: c.__name__[1:]
)
def test_a_checkpoint_of_0_1_is_refused_in_one_line_with_exit_code_3(command, old_run, tmp_path, monkeypatch, capsys):
    small.use_one_device(monkeypatch)
    before = {path: path.read_bytes() for path in old_run.rglob("*") if path.is_file()}
    assert command(old_run, tmp_path) == 3
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "manifest.json: written by mm01_jax 0.1; this is 0.2" in line and "mm01-convert" in line
    assert {path: path.read_bytes() for path in before} == before
    assert not (old_run / "config.json").exists()


def test_a_checkpoint_of_0_1_is_never_skipped_as_damaged(old_run):
    said = []
    with checkpoint.Checkpoints(old_run, log=said.append) as checkpoints:
        with pytest.raises(checkpoint.OtherVersion):
            checkpoints.latest_meta()
        with pytest.raises(checkpoint.OtherVersion):
            checkpoints.restore_latest({"x": jax.ShapeDtypeStruct((1,), "float32")})
    assert not said
    assert (old_run / "checkpoints/00000002").is_dir()
