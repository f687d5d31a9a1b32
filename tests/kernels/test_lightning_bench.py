"""The benchmark of lightning attention: parity first, no time for what is wrong, no row lost to another."""

import json

import jax.numpy as jnp
import pytest

from benchmarks.kernels import bench, lightning, timing
from pallas_kernels.lightning_attention import cost, xla


def test_bench_tiny_rows_pass_parity_and_are_kept_as_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "COPY_BYTES", {"cpu": 2**16})
    monkeypatch.setattr(timing, "BATCH_SECONDS", 0.0)
    kept = tmp_path / "rows.json"
    assert bench.main(["lightning_attention", "--shapes=tiny,tiny_decode", f"--json={kept}"]) == 0
    rows = json.loads(kept.read_text())["rows"]
    assert [row["name"] for row in rows] == ["tiny", "tiny_decode"]
    assert all(e["error"] <= e["allowed"] for row in rows for e in row["parity"].values())
    assert rows[0]["forward"]["ms"] > 0 and rows[0]["forward+backward"]["ms"] > 0 and rows[1]["step"]["ms"] > 0
    assert "comparisons passed" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["out", "dk", "d_state"])
def test_bench_reports_no_time_for_a_wrong_result(wrong, monkeypatch):
    right = lightning._functions()["forward+backward"]

    def both(implementation, x):
        results = right(implementation, x)
        if (value := getattr(results, wrong)) is None:
            return results
        last = (-1,) * value.ndim
        return results._replace(**{wrong: value.at[last].add(jnp.asarray(40, value.dtype))})

    monkeypatch.setattr(lightning, "_functions", lambda: {"forward+backward": both})
    row = lightning.run(lightning.CASES["tiny"], 1e9, implementation="xla", peers=False)
    assert row["failed"].startswith("parity") and "forward+backward" not in row


def test_bench_row_that_cannot_run_says_why_and_the_next_one_runs(monkeypatch):
    def broken(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(xla, "forward", broken)
    row = lightning.run(lightning.CASES["tiny"], 1e9, implementation="xla", peers=False)
    assert row["failed"] == "RuntimeError: out of memory"
    assert "FAILED" in lightning.text(row)


def test_bench_unknown_shape_names_the_nearest(capsys):
    with pytest.raises(SystemExit):
        bench.main(["lightning_attention", "--shapes=tinny"])
    assert "did you mean 'tiny'" in capsys.readouterr().err


def test_cost_floor_counts_eleven_tensors_and_streaming_fourteen():
    shape = cost.Shape(1, 32768, 64, 128)
    both = ("forward", "backward")
    assert cost.floor_bytes(shape, both) == 11 * shape.tensor_bytes
    assert cost.streamed_bytes(shape, both) == 14 * shape.tensor_bytes + 4 * shape.state_bytes
