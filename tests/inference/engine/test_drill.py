"""The drill as a command: what it counts, what it refuses."""

import json

import pytest

from mm01_jax.inference import engine_devices
from mm01_jax.inference.drill.__main__ import main
from tests import small


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(engine_devices, "jit", small.unoptimised)


def test_a_drill_counts_equal_requests_hits_and_programs(tmp_path, capsys):
    out = tmp_path / "drill.json"
    asked = ["--random=32", "--schedules=2", "--requests=16", "--different=20", f"--json={out}", "--nocompile-cache"]
    assert main(asked) == 0
    found = json.loads(out.read_text())
    assert (found["requests"], found["equal"], found["different"], found["compiled_in_traffic"]) == (32, 32, 0, 0)
    assert found["engine"]["prefix"]["hits"] > 0 and found["engine"]["programs"] <= 12
    assert "32 requests, 0 different" in capsys.readouterr().out


@pytest.mark.parametrize(
    "asked, message",
    (
        ([], "--checkpoint, --random: got 'neither'; allowed: one of them"),
        (["--random=33"], "--random: got 33; allowed: multiples of 32; nearest: 32"),
        (["--random=32", "--grid=300"], "--grid"),
    ),
)
def test_a_drill_refuses_what_it_cannot_do(asked, message, capsys):
    assert main([*asked, "--nocompile-cache"]) == 2
    assert message in capsys.readouterr().err
