"""The curriculum of `recall:` documents at the size of a CPU: it finds in a wording that it was not taught."""

import json
import os
import subprocess
import sys

import pytest

ONE_DEVICE = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}  # as the bench is run, unlike the suite
# Memory of a step is kept for the next one: given back and asked for anew it costs a fifth of the processors' time.
KEPT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


@pytest.mark.slow  # minutes
def test_a_tiny_model_learns_to_find_in_wordings_that_it_was_not_taught(tmp_path):
    command = [sys.executable, "-m", "benchmarks.recall", "--small", f"--workdir={tmp_path}"]
    command += [f"--json={tmp_path / 'rows.json'}"]
    done = subprocess.run(command, env=os.environ | ONE_DEVICE | KEPT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row["value"] for row in json.loads((tmp_path / "rows.json").read_text())}
    found = {length: rows[f"recall tiny, hybrid, needle of {length:,} tokens: score"] for length in (512, 1024)}
    assert min(found.values()) >= 0.9, rows
