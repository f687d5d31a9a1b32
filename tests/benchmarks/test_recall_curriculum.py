"""The curriculum of `recall:` documents at the size of a CPU: it finds in a wording that it was not taught."""

import json

import pytest

from benchmarks import recall


@pytest.mark.slow  # minutes
def test_a_tiny_model_learns_to_find_in_wordings_that_it_was_not_taught(tmp_path):
    assert recall.main(["--small", f"--workdir={tmp_path}", f"--json={tmp_path / 'rows.json'}"]) == 0
    rows = {row["what"]: row["value"] for row in json.loads((tmp_path / "rows.json").read_text())}
    found = {length: rows[f"recall tiny, hybrid, needle of {length:,} tokens: score"] for length in (512, 1024)}
    assert min(found.values()) >= 0.9, rows
