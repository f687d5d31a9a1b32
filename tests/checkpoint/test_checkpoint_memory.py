"""A save holds one copy of the state beside it, a restore nothing but the state and one array's shard."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_a_save_adds_one_copy_and_a_restore_one_shard(tmp_path):
    command = [sys.executable, "-m", "tests.checkpoint.memory", "--layers=20"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TMPDIR": str(tmp_path)}
    output = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    print(output)
    found = json.loads(output)
    assert found["save_adds"] <= 1.2
    assert found["restore_takes"] <= 1 + 1 / 3 + 0.1  # three arrays of one size: the largest shard is a third
