"""The curriculum of `recall:` documents at the size of a CPU: it finds in a wording that it was not taught."""

import json
import os
import subprocess
import sys

import pytest

ONE_DEVICE = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}  # as the bench is run, unlike the suite
# Memory of a step is kept for the next one: given back and asked for anew it costs a fifth of the processors' time.
KEPT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def scores(folder, *flags: str) -> dict[str, float]:
    """The rows of a bench of the tiny size."""
    folder.mkdir(exist_ok=True)
    path = folder / "rows.json"
    command = [sys.executable, "-m", "benchmarks.recall", "--small", f"--workdir={folder / 'runs'}", f"--json={path}"]
    done = subprocess.run([*command, *flags], env=os.environ | ONE_DEVICE | KEPT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {row["what"]: row["value"] for row in json.loads(path.read_text())}


@pytest.mark.slow  # three minutes
def test_a_tiny_model_learns_to_look_back_and_one_of_lightning_alone_does_not(tmp_path):
    """Bytes of a stretch that is said twice, of held-out documents: who counts letters has 2.4 nats."""
    for mixers, least, most in (("hybrid", 0.0, 1.0), ("lightning", 1.8, 2.4)):
        rows = scores(tmp_path / mixers, "--copies", "--steps=240", f"--mixers={mixers}")
        assert least < rows[f"recall tiny, {mixers}, stage copies: held-out loss of answers"] < most, rows


@pytest.mark.slow  # minutes more
def test_a_tiny_model_learns_to_find_in_wordings_that_it_was_not_taught(tmp_path):
    rows = scores(tmp_path)
    found = {length: rows[f"recall tiny, hybrid, needle of {length:,} tokens: score"] for length in (512, 1024)}
    assert min(found.values()) >= 0.9, rows
