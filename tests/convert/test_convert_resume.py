"""A conversion killed at any moment leaves nothing finished; the same command again equals one that was not killed."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from mm01_jax.checkpoint import open_checkpoint
from mm01_jax.convert.__main__ import main
from mm01_jax.convert.from_torch import from_torch
from mm01_jax.convert.to_torch import to_torch
from mm01_jax.convert.torch.shard import ShardFile
from tests.convert import samples

QUIET = {"log": lambda line: None}
# A pause at every tensor: kills then meet all stages, not only the start of Python.
SLOWED = """
import sys, time
from mm01_jax.convert import axes, __main__
rearrange = axes.rearrange
axes.rearrange = lambda *a: (time.sleep(0.01), rearrange(*a))[1]
sys.exit(__main__.main(sys.argv[1:]))
"""
PAUSE = 0.002


def command(way: str, room: pathlib.Path, out: str) -> list[str]:
    source = room / ("in" if way == "from-torch" else "ours")
    extra = [] if way == "from-torch" else ["--shard-gb=0.00001"]
    return [way, f"--source={source}", f"--target={room / out}", *extra]


def kill_at(arguments: list[str], share: float, wanted: pathlib.Path) -> bool:
    """Runs the command until it has written this share of the files of `wanted`; whether the kill met it at work."""
    partial = pathlib.Path(arguments[2].removeprefix("--target=") + ".partial")
    files = share * len(content(wanted))
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWED, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    while process.poll() is None and sum(p.is_file() for p in partial.rglob("*")) <= files:
        time.sleep(PAUSE)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return alive


def content(directory: pathlib.Path) -> dict[str, bytes]:
    """Every file."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> pathlib.Path:
    room = tmp_path_factory.mktemp("resume")
    samples.make(room / "in", "native")
    from_torch(room / "in", room / "ours", **QUIET)
    to_torch(room / "ours", room / "torch", shard_bytes=10_000, **QUIET)
    return room


def survive_kill(way: str, room: pathlib.Path, share: float) -> bool:
    reference = room / ("ours" if way == "from-torch" else "torch")
    wanted = content(reference)
    killed = kill_at(command(way, room, "out"), share, reference)
    assert killed != (room / "out").exists()
    if killed:
        assert main(command(way, room, "out")) == 0
    assert content(room / "out") == wanted
    assert not (room / "out.partial").exists()
    shutil.rmtree(room / "out")
    return killed


@pytest.mark.parametrize(("way", "share"), [("to-torch", 0.5), ("from-torch", 0.1), ("from-torch", 0.9)])
def test_killed_conversion_resumes_to_the_same_bytes(way, share, room):
    assert survive_kill(way, room, share)


def test_killed_import_with_a_chunk_damaged_since_resumes_to_the_same_bytes(room):
    wanted = content(room / "ours")
    assert kill_at(command("from-torch", room, "out"), 0.5, room / "ours")
    files = sorted(p for p in (room / "out.partial").glob("state/arrays/*/c/**/*") if p.is_file())
    raw = bytearray(files[0].read_bytes())
    raw[3] ^= 1
    files[0].write_bytes(raw)
    assert main(command("from-torch", room, "out")) == 0
    assert content(room / "out") == wanted
    shutil.rmtree(room / "out")


def test_interrupted_export_with_a_shard_damaged_since_resumes_to_the_same_bytes(room, monkeypatch):
    wanted, synced, sync = content(room / "torch"), [], ShardFile.sync

    def fail_at_the_third(file):
        synced.append(sync(file))
        if len(synced) == 3:
            raise OSError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(ShardFile, "sync", fail_at_the_third)
        assert main(command("to-torch", room, "out")) == 2
    shards = sorted((room / "out.partial").glob("*.safetensors"))
    assert len(shards) == 2 and not (room / "out").exists()
    raw = bytearray(shards[0].read_bytes())
    raw[-3] ^= 1
    shards[0].write_bytes(raw)
    assert main(command("to-torch", room, "out")) == 0
    assert content(room / "out") == wanted
    shutil.rmtree(room / "out")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["from-torch", "to-torch"])
def test_ten_kills_at_random_moments_resume_to_the_same_bytes(way, room):
    stream = random.Random(way)
    killed = [survive_kill(way, room, stream.random()) for _ in range(10)]
    assert sum(killed) >= 8, killed


def test_ctrl_c_ends_in_one_line_and_the_same_command_goes_on(room, monkeypatch, capsys):
    wanted, interrupted, write = content(room / "torch"), [], ShardFile.write

    def interrupt_once(file, name, array):
        write(file, name, array)
        if not interrupted:
            interrupted.append(name)
            raise KeyboardInterrupt

    monkeypatch.setattr(ShardFile, "write", interrupt_once)
    assert main(command("to-torch", room, "out")) == 130
    assert capsys.readouterr().err.endswith("interrupted; a conversion goes on with the same command\n")
    assert not (room / "out").exists()
    assert main(command("to-torch", room, "out")) == 0
    assert content(room / "out") == wanted
    shutil.rmtree(room / "out")


def test_resuming_with_another_source_is_refused(room, tmp_path, monkeypatch):
    shutil.copytree(room / "in", tmp_path / "in")
    arguments = command("from-torch", tmp_path, "out")

    def fail(*_):
        raise OSError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr("mm01_jax.convert.axes.rearrange", fail)
        assert main(arguments) == 2
    assert (tmp_path / "out.partial").exists() and not (tmp_path / "out").exists()
    plain = json.loads((tmp_path / "in" / "config.json").read_text())
    (tmp_path / "in" / "config.json").write_text(json.dumps(plain | {"rope_theta": 5e6}))
    assert main(arguments) == 2
    assert not (tmp_path / "out").exists()


def test_resumed_manifest_verifies_every_chunk(room):
    checkpoint = open_checkpoint(room / "ours")
    for path, leaf in checkpoint.leaves.items():
        assert checkpoint.read(path, (0,) * leaf.stack).shape == leaf.shape[leaf.stack :]
