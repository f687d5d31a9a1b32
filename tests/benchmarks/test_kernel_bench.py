"""The bench of the kernels: parity first, no time for what is wrong, no case lost to another."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import results
from benchmarks.kernels import __main__ as bench
from benchmarks.kernels import cases, dense, lightning, lightning_cost, measured, softmax, timing
from pallas_kernels.lightning_attention import xla


def run(operation: str, name: str, peers: bool = False):
    return bench.run(operation, cases.CASES[operation][name], 1e9, "xla", peers)


def test_bench_tiny_cases_of_all_operations_pass_parity_and_are_kept_as_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "COPY_BYTES", {"cpu": 2**16})
    monkeypatch.setattr(timing, "BATCH_SECONDS", 0.0)
    kept = tmp_path / "rows.json"
    assert bench.main(["--shapes=tiny,tiny_decode", f"--json={kept}"]) == 0
    rows = {row.what: row for row in results.read(kept)}
    for operation in cases.CASES:
        for quantity in ("forward", "forward+backward"):
            assert rows[f"{operation} tiny: {quantity}"].value > 0
        assert 0 <= rows[f"{operation} tiny: of the bound"].value <= 1
    assert rows["lightning_attention tiny_decode: step"].value > 0
    assert all(row.versions["jax"] and row.device and row.command.endswith("tiny_decode") for row in rows.values())
    assert capsys.readouterr().out.count("comparisons passed") == 1 + len(cases.CASES)


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
    found = run("lightning_attention", "tiny")
    assert found.failed.startswith("parity") and not found.times


@pytest.mark.parametrize(
    ("operation", "wrong"), [("softmax_attention", 3), ("grouped_matmul", 0), ("expert_ffn", 5), ("gated_norm", 1)]
)
def test_bench_beside_xla_reports_no_time_for_a_wrong_result(operation, wrong, monkeypatch):
    right, calls = dense.furthest, []

    def furthest(got, exact):
        calls.append(None)
        return right(got, exact) + (40 if len(calls) == 2 * wrong + 1 else 0)  # results and plain XLA's in turn

    monkeypatch.setattr(dense, "furthest", furthest)
    found = run(operation, "tiny")
    assert found.failed.startswith("parity") and not found.times


def test_bench_case_that_cannot_run_says_why_and_the_next_one_runs(monkeypatch):
    def broken(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(xla, "forward", broken)
    found = run("lightning_attention", "tiny")
    assert found.failed == "RuntimeError: out of memory"
    assert "FAILED" in measured.text(found)


def test_bench_case_that_fails_leaves_its_reason_and_no_older_time(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "COPY_BYTES", {"cpu": 2**16})
    monkeypatch.setattr(timing, "BATCH_SECONDS", 0.0)
    arguments = ["grouped_matmul", "--shapes=tiny", f"--json={tmp_path / 'rows.json'}"]
    assert bench.main(arguments) == 0
    monkeypatch.setattr(dense, "furthest", lambda got, exact: float("nan"))
    assert bench.main(arguments) == 1
    rows = {row.quantity: row.value for row in results.read(tmp_path / "rows.json")}
    assert rows.keys() == {"sizes", "failed"} and rows["failed"].startswith("parity")


def test_bench_peer_that_cannot_run_here_is_named_with_the_reason(monkeypatch):
    monkeypatch.setattr(timing, "BATCH_SECONDS", 0.0)
    found = run("softmax_attention", "tiny", peers=True)
    assert set(found.refused) == {"cudnn", "torch", "xla"}
    assert "cudnn not timed: it is written for CUDA" in measured.text(found)


@pytest.mark.parametrize("uneven", [False, True])
def test_bench_documents_fill_every_row_and_their_positions_begin_at_0(uneven):
    case = cases.Softmax("", 3, 1000, 1, 1, 64, documents=7, uneven=uneven)
    positions, documents = softmax.tags_of(case)
    for row, index in zip(positions, documents, strict=True):
        sizes = np.bincount(index)
        assert len(sizes) == 7 and (sizes.max() - sizes.min() > 100) == uneven
        np.testing.assert_array_equal(row, np.concatenate([np.arange(size) for size in sizes]))
    assert (len(np.unique(documents, axis=0)) == 3) == uneven


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        (["--shapes=tinny"], "did you mean 'tiny'"),
        (["lightning_atention"], "did you mean 'lightning_attention'"),
        (["softmax_attention", "--shapes=decode1"], "no shape 'decode1' of softmax_attention"),
        (["--jsn=x"], "did you mean '--json'"),
    ],
)
def test_bench_unknown_name_is_refused_in_one_line_with_the_nearest(arguments, refusal, capsys):
    with pytest.raises(SystemExit):
        bench.main(arguments)
    said = capsys.readouterr().err
    assert refusal in said and said.count("\n") == 1


def test_cost_floor_counts_eleven_tensors_and_streaming_fourteen():
    shape = lightning_cost.Shape(1, 32768, 64, 128)
    both = ("forward", "backward")
    assert lightning_cost.floor_bytes(shape, both) == 11 * shape.tensor_bytes
    assert lightning_cost.streamed_bytes(shape, both) == 14 * shape.tensor_bytes + 4 * shape.state_bytes
