"""The command of evaluations: its tasks, what it refuses, and a perplexity that is the mean over every held-out row."""

import math
from dataclasses import replace

import jax
import numpy as np
import pytest

from mm01_jax.data.dataset import open_dataset
from mm01_jax.evals import __main__ as evals
from mm01_jax.evals.perplexity import Band, Perplexity, perplexity
from mm01_jax.loading import load
from tests import small
from tests.train import cheap_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The work directory of a run of one step, and its text."""
    with pytest.MonkeyPatch.context() as patch:
        cheap_run.use(patch)
        workdir = tmp_path_factory.mktemp("run")
        text = small.write_text(workdir / "text")
        cheap_run.run(workdir, small.config(text, train__steps=1))
    return workdir, text


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    return evals.main(arguments), *capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--checkpoint=runs/tiny",), "got 'none'; allowed: one of perplexity"),
        (
            ("perplexty", "--checkpoint=runs/tiny"),
            "nearest: perplexity",
        ),
        (("perplexity", "needle", "--checkpoint=runs/tiny"), "got 'needle'; allowed: one task"),
        (("perplexity",), "nearest: --checkpoint=runs/tiny"),
        (("perplexity", "--chekpoint=runs/tiny"), "chekpoint"),
    ],
)
def test_a_wrong_command_is_refused_in_one_line_by_name(capsys, arguments, named):
    code, out, err = command(capsys, *arguments)
    assert (code, out) == (2, "")
    assert named in err
    assert len(err.strip().splitlines()) == 1


def test_a_missing_checkpoint_is_refused_by_its_place(tmp_path, capsys):
    assert command(capsys, "perplexity", f"--checkpoint={tmp_path}") == (
        3,
        "",
        f"mm01-eval: {tmp_path}: no checkpoint here\n",
    )


def test_what_is_no_run_has_held_nothing_out_and_needs_a_source(tmp_path, capsys):
    (tmp_path / "model.safetensors").touch()
    code, out, err = command(capsys, "perplexity", f"--checkpoint={tmp_path}")
    assert (code, out) == (2, "")
    assert "--source: got 'nothing'" in err and f"{tmp_path} is no run" in err


def test_perplexity_of_a_run_is_said_beside_what_counting_achieves(run, capsys):
    workdir, text = run
    code, out, err = command(capsys, "perplexity", f"--checkpoint={workdir}")
    assert (code, err) == (0, "")
    last = out.splitlines()[-1]
    with small.one_device():
        model, _, config = load(str(workdir))
        found = perplexity(model, config)
    assert last == str(found)
    assert f"perplexity {math.exp(found.loss):.3f}" in last and "bigram" in last
    whole = command(capsys, "perplexity", f"--checkpoint={workdir}", f"--source={text}")[1].splitlines()[-1]
    assert int(whole.split(" targets")[0].split()[-1].replace(",", "")) > found.num_targets


def test_a_loss_whose_perplexity_is_beyond_every_number_is_said_as_it_is():
    for loss, said in ((2.0, "7.389"), (710.0, "inf"), (1e38, "inf")):
        _, band, _, last = str(Perplexity(loss, loss, 5.0, 4.0, 7, (Band(0, 1, loss, 7),))).splitlines()
        assert f" {said} " in band and f"loss {loss:.4f} nats a token, perplexity {said}," in last


def test_perplexity_with_a_tokenizer_that_is_named_is_of_the_run_s_own_data(run, capsys):
    workdir, _ = run
    code, out, err = command(capsys, "perplexity", f"--checkpoint={workdir}", "--tokenizer=bytes")
    assert (code, err) == (0, "") and "perplexity" in out


def test_a_row_of_a_checkpoint_s_own_length_is_no_longer_than_its_text_needs(run):
    workdir, _ = run
    with small.one_device():
        model, _, config = load(str(workdir))

        def of_length(length: int) -> Perplexity:
            return perplexity(model, replace(config, train=replace(config.train, sequence_length=length)))

        assert of_length(2**30 - 1) == of_length(2**12)


def test_perplexity_is_the_mean_over_every_held_out_row(run):
    workdir, _ = run
    with small.one_device():
        model, _, config = load(str(workdir))
        found = perplexity(model, config)
        rows = open_dataset(config.data, config.train.sequence_length, config.model.vocab_size).held_out
        rows = [rows.row(i) for i in range(rows.num_rows)]
        arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        by_band = perplexity(model, config, by_position=True)
        logits = small.unoptimised(lambda m: m(arrays["tokens"], arrays["positions"], arrays["segments"]))(model)
        losses = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), arrays["targets"][..., None], -1)[..., 0]
    assert found.num_targets == arrays["weights"].sum()
    want = (losses.astype(np.float64) * arrays["weights"]).sum() / arrays["weights"].sum()
    np.testing.assert_allclose(found.loss, want, rtol=1e-5)
    assert found.bigram < found.unigram
    assert by_band.loss == pytest.approx(found.loss, rel=1e-6) and found.bands == ()
    positions, counted = arrays["positions"], 0
    for band in by_band.bands:
        weights = arrays["weights"] * ((positions >= band.first) & (positions <= band.last))
        assert band.num_targets == weights.sum() > 0
        np.testing.assert_allclose(band.loss, (losses.astype(np.float64) * weights).sum() / weights.sum(), rtol=1e-5)
        counted += band.num_targets
    assert counted == found.num_targets and len(by_band.bands) > 3
    assert "position in the document" in str(by_band) and str(by_band).endswith(str(found)[-40:])
