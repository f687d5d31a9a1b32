"""Laws of a run, around a step that costs nothing: what is compared, saved, restored and said."""

import os
import signal

import numpy as np
import pytest

from mm01_jax import checkpoint
from mm01_jax.config import ConfigError, saved
from mm01_jax.data.text import DataError
from mm01_jax.train import loop
from mm01_jax.train.metrics_file import read_metrics
from mm01_jax.train.preemption import Preempted
from tests import small
from tests.train.cheap_run import after_step, digest, exit_code, losses, run, steps_saved

pytestmark = pytest.mark.usefixtures("cheap")


def test_a_fresh_run_saves_evaluates_records_and_says_what_to_type_next(whole):
    workdir, said, found, _ = whole
    assert [at for at, _ in found] == [1, 2, 3, 4, 5, 6]
    assert steps_saved(workdir) == [2, 4, 6]
    records = read_metrics(workdir)
    assert [r["step"] for r in records if "held_out_loss" in r] == [3, 6]
    assert all(np.isfinite(r["held_out_loss"]) for r in records if "held_out_loss" in r)
    assert {"step", "loss", "grad_norm", "learning_rate", "tokens_per_second", "bits_per_byte"} <= records[0].keys()
    assert saved.from_json((workdir / "config.json").read_text()).train.steps == 6
    text = "\n".join(said)
    for command in (
        "mm01_jax.inference --checkpoint=",
        "mm01_jax.train --config=",
        "mm01_jax.evals perplexity --checkpoint=",
    ):
        assert command in text
    assert "unigram" in text and "bigram" in text
    assert len(text.splitlines()) <= 40


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR2])
def test_a_run_stopped_by_a_signal_saves_its_step_and_goes_on_bitwise(whole, text, tmp_path, monkeypatch, number):
    _, _, want, last = whole
    after_step(monkeypatch, 3, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Preempted, match="step 3 is saved"):
        loop.run(small.config(text), str(tmp_path), save_on=(signal.SIGUSR1, signal.SIGUSR2))
    assert steps_saved(tmp_path) == [2, 3]
    assert losses(tmp_path) == want[:3]
    said, found, digest_found = run(tmp_path, small.config(text))
    assert any("resumed from step 3 (verified" in line for line in said)
    assert (found, digest_found) == (want, last)


def test_handlers_are_put_back_after_a_run(whole, text, tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run(tmp_path, small.config(text, train__steps=1))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_finished_run_goes_on_with_more_steps_and_other_intervals_as_if_it_had_them_at_once(whole, text, tmp_path):
    _, _, want, last = whole
    run(tmp_path, small.config(text, train__steps=4))
    more = small.config(text, train__eval_every=1, train__checkpoint_every=5, data__prefetch=1)
    said, found, digest_found = run(tmp_path, more)
    assert (found, digest_found) == (want, last)
    assert any("train.steps 4 -> 6" in line for line in said)
    assert steps_saved(tmp_path) == [2, 4, 5, 6]


def test_only_every_so_many_steps_and_evaluations_are_logged(whole, text, tmp_path):
    _, _, want, _ = whole
    _, found, _ = run(tmp_path, small.config(text, train__log_every=4))
    assert found == [want[at - 1] for at in (3, 4, 6)]  # evaluated, logged, evaluated


@pytest.mark.parametrize("steps", [6, 3])
def test_a_finished_run_started_again_changes_nothing_and_says_so(whole, text, steps):
    workdir, _, want, last = whole
    before = (workdir / "config.json").read_text()
    said, found, digest_found = run(workdir, small.config(text, train__steps=steps))
    assert (found, digest_found) == (want, last)
    assert said[-1] == f"nothing is left to do: train.steps={steps}, and {workdir} is at step 6"
    assert (workdir / "config.json").read_text() == before


def test_a_resumed_run_refuses_other_numbers_by_name(whole, text, capsys):
    workdir, _, want, last = whole
    other = small.config(text, optimizer__schedule__peak=2e-2, train__batch_size=4, train__seed=1)
    with pytest.raises(ConfigError) as caught:
        run(workdir, other)
    assert {problem.key for problem in caught.value.problems} == {
        "optimizer.schedule.peak",
        "train.batch_size",
        "train.seed",
    }
    assert exit_code(workdir, other) == 2
    assert "train.batch_size: got 4" in capsys.readouterr().err
    assert (losses(workdir), digest(workdir)) == (want, last)
    assert saved.from_json((workdir / "config.json").read_text()).train.seed == 0


def test_changed_data_is_refused_by_the_name_of_the_file(text, tmp_path, capsys):
    mine = tmp_path / "data" / "text.jsonl"
    mine.parent.mkdir()
    mine.write_bytes(text.read_bytes())
    config = small.config(mine, train__steps=2)
    run(tmp_path / "run", config)
    mine.write_bytes(text.read_bytes() + b'{"text": "one more"}\n')
    with pytest.raises(DataError, match=r"changed: text\.jsonl"):
        run(tmp_path / "run", config)
    assert exit_code(tmp_path / "run", config) == 3
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_second_writer_is_refused(text, tmp_path, capsys):
    config = small.config(text, train__steps=1)
    lock = checkpoint.RunLock(tmp_path)
    assert exit_code(tmp_path, config) == 2
    lock.close()
    error = capsys.readouterr().err
    assert str(os.getpid()) in error
    assert not (tmp_path / "checkpoints").exists()
    run(tmp_path, config)


def test_init_from_takes_the_weights_alone(whole, text, tmp_path):
    """Nothing else: the first loss is that of the old weights, everything counts from zero."""
    workdir, _, _, _ = whole
    other = small.config(text, train__steps=1, optimizer__schedule__peak=5e-3, train__seed=3)
    said, _, _ = run(tmp_path / "new", other, init_from=str(workdir))
    assert any(f"weights from {workdir} (verified" in line for line in said)
    old = checkpoint.open_checkpoint(workdir)
    embed, first = old.read("embed"), read_metrics(tmp_path / "new")[0]["loss"]
    np.testing.assert_allclose(first, np.sum(embed, dtype=np.float64), rtol=1e-3)
    said, _, _ = run(tmp_path / "new", small.replace(other, train__steps=2), init_from=str(workdir))
    assert any("--init_from" in line and "not used" in line for line in said)


def test_init_from_nothing_is_refused(whole, text, tmp_path, capsys):
    assert exit_code(tmp_path / "a", small.config(text), str(tmp_path / "nowhere")) == 3
    assert "no checkpoint here" in capsys.readouterr().err


def test_init_from_a_checkpoint_of_another_model_is_refused_by_every_difference_before_anything_is_made(
    whole, text, tmp_path, monkeypatch, capsys
):
    """Widths would not fit; the norm's epsilon and RoPE's reach would, and the maths would silently be another."""
    monkeypatch.setattr(loop, "begin", lambda *_, **__: pytest.fail("began"))
    other = small.config(text, model__expert_dim=24, model__rotary_dim=8, model__norm_eps=1e-3)
    assert exit_code(tmp_path / "b", other, str(whole[0])) == 2
    error = capsys.readouterr().err
    for key, got, before in (("expert_dim", "24", "16"), ("rotary_dim", "8", "4"), ("norm_eps", "0.001", "1e-05")):
        (line,) = (line for line in error.splitlines() if f"model.{key}: got {got};" in line)
        assert f"--init-from={whole[0]}" in line and line.endswith(f"nearest: {before}")
    assert len(error.splitlines()) == 4
    assert not (tmp_path / "b/config.json").exists()


def test_init_from_says_in_one_line_that_the_tokenizer_is_another(whole, text, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(loop, "begin", lambda *_, **__: (_ for _ in ()).throw(Preempted("enough")))
    monkeypatch.setattr(loop, "open_dataset", lambda *_, **__: type("Data", (), {"describe": lambda self: ""})())
    other = small.config(text, data__tokenizer="tokens/tokenizer.json")
    with pytest.raises(Preempted):
        run(tmp_path, other, said, init_from=str(whole[0]))
    (line,) = (line for line in said if line.startswith("data.tokenizer"))
    assert "'bytes' -> 'tokens/tokenizer.json'" in line


def test_init_from_a_conversion_compares_the_model_alone(whole, text, tmp_path, capsys):
    """Outside `model` the config of a conversion has placeholders."""
    trained = checkpoint.open_checkpoint(whole[0])
    placeholders = {"train__steps": 1, "train__sequence_length": 8192, "data__tokenizer": "tokenizer.json"}
    leaves = {path: (leaf.shape, leaf.dtype, leaf.stack) for path, leaf in trained.leaves.items()}
    with checkpoint.ArrayWriter(tmp_path / "converted", leaves) as writer:
        for path, leaf in trained.leaves.items():
            for index in np.ndindex(leaf.shape[: leaf.stack]):
                writer.write(path, index, trained.read(path, index))
        writer.finish(saved.to_json(small.config(**placeholders)))
    said, _, _ = run(tmp_path / "new", small.config(text, train__steps=1), init_from=str(tmp_path / "converted"))
    assert any("weights from" in line for line in said)
    assert not any(line.startswith("data.tokenizer") for line in said)
    other = small.config(text, model__rope_theta=500.0)
    assert exit_code(tmp_path / "other", other, str(tmp_path / "converted")) == 2
    assert "model.rope_theta: got 500.0" in capsys.readouterr().err
    said, _, _ = run(
        tmp_path / "longer",
        small.config(text, model__rope_theta=1e6, train__steps=1),
        init_from=str(tmp_path / "converted"),
    )
    assert any(line.startswith("model.rope_theta 10000.0 -> 1000000.0") for line in said)


def test_a_resumed_run_may_be_computed_in_another_way_but_keeps_the_dtype_of_its_weights(whole, text, tmp_path):
    run(tmp_path, small.config(text, train__steps=2))
    with pytest.raises(ConfigError, match=r"compute\.param_dtype: got 'bfloat16'"):
        run(tmp_path, small.config(text, compute__param_dtype="bfloat16"))
    said, _, _ = run(tmp_path, small.config(text, train__steps=3, compute__dtype="bfloat16", compute__remat="full"))
    assert any("compute.dtype 'float32' -> 'bfloat16'" in line for line in said)
    assert any("compute.remat 'none' -> 'full'" in line for line in said)


def test_a_batch_ramp_takes_every_row_once(whole, text, tmp_path, monkeypatch):
    rows = []
    original = loop._Loop._on_devices

    def on_devices(self, batch, step_number):
        rows.append((len(batch.tokens), batch.tokens[:, :4].tolist()))
        return original(self, batch, step_number)

    monkeypatch.setattr(loop._Loop, "_on_devices", on_devices)
    run(tmp_path / "flat", small.config(text))
    flat = [row for _, batch in rows for row in batch]
    rows.clear()
    run(tmp_path / "ramp", small.config(text, train__batch_ramp=((2, 4),), train__steps=4))
    assert [size for size, _ in rows] == [2, 2, 4, 4]
    assert [row for _, batch in rows for row in batch] == flat
    with checkpoint.Checkpoints(tmp_path / "ramp") as checkpoints:
        assert checkpoints.latest_meta()["row"] == 12
