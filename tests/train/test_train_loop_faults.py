"""Laws of a run that meets faults, around a step that costs nothing: damage, full disks, non-finite steps."""

import errno
import json
import threading

import pytest

from mm01_jax import checkpoint
from mm01_jax.checkpoint import snapshot
from mm01_jax.train import loop
from mm01_jax.train.metrics_file import read_metrics
from tests import small
from tests.train.cheap_run import BAD_STEPS, BROKEN_STEPS, after_step, damage, exit_code, losses, run, steps_saved

pytestmark = pytest.mark.usefixtures("cheap")


def test_a_damaged_newest_step_is_skipped_with_a_message_and_done_again(whole, text, tmp_path):
    _, _, want, last = whole
    run(tmp_path, small.config(text))
    damage(tmp_path, 6)
    said, found, digest_found = run(tmp_path, small.config(text))
    assert any("step 6 is skipped" in line and "tensor" in line for line in said)
    assert any("resumed from step 4" in line for line in said)
    assert (found, digest_found) == (want, last)


def test_a_run_whose_steps_are_all_damaged_is_refused_and_left_alone(text, tmp_path, capsys):
    run(tmp_path, small.config(text, train__steps=3, train__checkpoint_every=1))
    for step_number in (1, 2, 3):
        damage(tmp_path, step_number)
    before = losses(tmp_path)
    assert exit_code(tmp_path, small.config(text)) == 3
    assert "none of the 3 steps" in capsys.readouterr().err
    assert losses(tmp_path) == before
    assert steps_saved(tmp_path) == [1, 2, 3]


def test_so_many_refused_steps_in_a_row_as_the_config_allows_are_lived_through(text, tmp_path):
    BAD_STEPS.update((2, 3, 4, 5))
    _, found, _ = run(tmp_path / "five", small.config(text, train__max_nonfinite_steps=5))
    assert [at for at, _ in found] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(loop.NonFinite, match="4 steps in a row were refused, the last is 5"):
        run(tmp_path / "four", small.config(text, train__max_nonfinite_steps=4))


@pytest.mark.parametrize("at", [2, 3])
def test_a_step_that_made_a_state_that_is_not_finite_stops_the_run_and_is_not_saved(text, tmp_path, capsys, at):
    """Also where that step is one to save, and where the metrics of the one before are still to be fetched."""
    BROKEN_STEPS.add(at)
    assert exit_code(tmp_path, small.config(text, train__checkpoint_every=1 if at == 3 else 3)) == 4
    assert f"step {at} made weights or moments that are not finite" in capsys.readouterr().err
    assert steps_saved(tmp_path) == ([1, 2] if at == 3 else [])


def test_refused_steps_in_a_row_stop_the_run_with_a_report_and_untouched_checkpoints(whole, text, tmp_path, capsys):
    BAD_STEPS.update((2, 4, 5, 6))
    config = small.config(text, train__steps=9, train__checkpoint_every=3)
    assert exit_code(tmp_path, config) == 4
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if "refused" in line][0].startswith(
        "step 2 is refused, weights unchanged"
    )
    assert "3 steps in a row were refused, the last is 6" in err
    assert steps_saved(tmp_path) == [3]
    assert [record["refused"] for record in read_metrics(tmp_path)] == [0, 1, 0, 1, 1, 1]
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_meta()["row"] == 6


def test_a_full_disk_is_reported_within_one_step_and_training_goes_on(whole, text, tmp_path, monkeypatch, capsys):
    _, _, want, last = whole
    write, reports = snapshot.Snapshot.write, []

    def failing(self, root):
        if self.manifest.step == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, root)

    monkeypatch.setattr(snapshot.Snapshot, "write", failing)
    # The background save has failed before the next step ends: wait for its thread, as a slow step would.
    after_step(monkeypatch, 3, lambda: reports.append(wait_for_saves()))
    _, found, digest_found = run(tmp_path, small.config(text))
    lines = capsys.readouterr().out.splitlines()
    (report,) = [n for n, line in enumerate(lines) if "NOT SAVED, training goes on" in line]
    assert "No space left" in lines[report]
    assert (found, digest_found) == (want, last)
    assert steps_saved(tmp_path) == [4, 6]
    reported = [line for line in lines[: report + 1] if line.startswith("step ")]
    assert len(reported) <= 3


def wait_for_saves() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("save "):
            thread.join()


def test_the_last_step_is_saved_even_when_the_save_before_it_failed(whole, text, tmp_path, monkeypatch):
    write = snapshot.Snapshot.write

    def failing(self, root):
        if self.manifest.step == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, root)

    monkeypatch.setattr(snapshot.Snapshot, "write", failing)
    _, _, digest_found = run(tmp_path, small.config(text, train__checkpoint_every=1))
    assert steps_saved(tmp_path) == [1, 2, 3, 4, 6]
    assert digest_found == whole[3]


def test_a_last_step_that_cannot_be_saved_ends_the_run_with_an_error(text, tmp_path, monkeypatch, capsys):
    def failing(self, root):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(snapshot.Snapshot, "write", failing)
    assert exit_code(tmp_path, small.config(text, train__steps=1)) == 74
    assert "No space left" in capsys.readouterr().err


def test_metrics_hold_each_step_once_after_a_line_cut_short(whole, text, tmp_path):
    _, _, want, last = whole
    run(tmp_path, small.config(text, train__steps=5, train__checkpoint_every=2))
    for step_number in (4, 5):  # as if killed after step 5, before its checkpoint
        damage(tmp_path, step_number)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 6, "loss": 1.0})[:9])
    _, found, digest_found = run(tmp_path, small.config(text))
    assert (found, digest_found) == (want, last)
