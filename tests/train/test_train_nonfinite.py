"""Laws of what a run keeps: finite weights, steps that were accepted, checkpoints that say what can be."""

import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax.train import loop, step
from tests import small
from tests.train import cheap_run
from tests.train.cheap_run import BAD_STEPS, exit_code, run, steps_saved

pytestmark = pytest.mark.usefixtures("cheap")


@pytest.fixture(scope="module")
def done(tmp_path_factory, text):
    """A run of four steps, saved at each second."""
    with pytest.MonkeyPatch.context() as patch:
        cheap_run.use(patch)
        workdir = tmp_path_factory.mktemp("done")
        run(workdir, small.config(text, train__steps=4))
        return workdir


def test_a_refused_step_is_not_saved_and_the_next_accepted_one_is(text, tmp_path):
    BAD_STEPS.update((2, 3))
    run(tmp_path, small.config(text))
    assert steps_saved(tmp_path) == [4, 6]


def test_refused_steps_retire_no_good_one(text, tmp_path, capsys):
    BAD_STEPS.update((3, 4, 5, 6))
    config = small.config(text, train__checkpoint_every=1, train__keep_checkpoints=1, train__max_nonfinite_steps=9)
    assert exit_code(tmp_path, config) == 4
    assert "the last step, 6, was refused; step 2 is saved" in capsys.readouterr().err
    assert steps_saved(tmp_path) == [2]


def test_a_run_that_ends_on_a_refused_step_saves_what_was_learnt_before_it(text, tmp_path, capsys):
    BAD_STEPS.add(6)
    assert exit_code(tmp_path, small.config(text, train__checkpoint_every=4)) == 4
    assert "the last step, 6, was refused; step 6 is saved" in capsys.readouterr().err
    assert steps_saved(tmp_path) == [4, 6]
    assert exit_code(tmp_path, small.config(text, train__checkpoint_every=4)) == 4  # again, and with nothing to do
    assert "nothing is left to do: train.steps=6" in capsys.readouterr().err


def test_a_run_of_one_refused_step_saves_nothing_and_does_not_succeed(text, tmp_path, capsys):
    BAD_STEPS.add(1)
    assert exit_code(tmp_path, small.config(text, train__steps=1)) == 4
    assert "nothing is saved: no step was accepted" in capsys.readouterr().err
    assert steps_saved(tmp_path) == []


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory, text):
    """A run of four steps whose last has a NaN in its weights, as 0.3 saved it."""

    def spoiling_step(state, batch, *, config):
        new, metrics = cheap_run.cheap_step(state, batch, config=config)
        bad = jnp.where(state.step == 3, jnp.nan, 0.0)
        embed = new.model.embed
        with_nan = jax.tree.map(lambda x: x + bad if x is embed[...] else x, new.model)
        return step.TrainState(new.step, with_nan, new.opt_state), metrics

    with pytest.MonkeyPatch.context() as patch:
        cheap_run.use(patch)
        patch.setattr(loop.step, "train_step", spoiling_step)
        workdir = tmp_path_factory.mktemp("spoilt")
        run(workdir, small.config(text, train__steps=4))
        assert steps_saved(workdir) == [2, 4]
        return workdir


def test_a_step_with_weights_that_are_not_finite_is_not_gone_on_from(spoilt, text, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(spoilt, workdir)
    said, found, _ = run(workdir, small.config(text, train__steps=5))
    (line,) = (line for line in said if "step 4 is skipped" in line)
    assert line.endswith("weights that are not finite: model/embed")
    assert any("resumed from step 2" in line for line in said)
    assert [at for at, loss in found if np.isfinite(loss)] == [1, 2, 3, 4, 5]


def test_a_run_begins_from_weights_that_are_not_finite_only_where_that_is_asked_for(spoilt, text, tmp_path, capsys):
    config = small.config(text, train__steps=1)
    assert exit_code(tmp_path / "a", config, str(spoilt)) == 3
    said = f"{spoilt}: weights that are not finite: embed; --allow-nonfinite takes them as they are\n"
    assert capsys.readouterr().err == said and steps_saved(tmp_path / "a") == []
    loop.run(config, str(tmp_path / "b"), str(spoilt), allow_nonfinite=True)
    said = []
    longer = small.config(text, train__steps=2)
    loop.run(longer, str(tmp_path / "b"), str(spoilt), said.append, allow_nonfinite=True)
    assert any("resumed from step 1" in line for line in said)


FACTS = {
    "row": (-1, 2**62, True, 7, None),
    "mesh": ({}, {"data": 0}, {"data": True, "expert": 1, "tensor": 1, "sequence": 1}, [1]),
    "data": ([], {}),
    "data.seed": (True, -1, "0"),
    "data.files": ([], None),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FACTS.items() for value in values])
def test_a_fact_of_a_step_that_cannot_be_is_named_and_the_step_before_it_goes_on(done, text, tmp_path, name, value):
    workdir = tmp_path / "run"
    shutil.copytree(done, workdir)
    change_fact(workdir, 4, name, value)
    said, found, _ = run(workdir, small.config(text, train__steps=5))
    (line,) = (line for line in said if "step 4 is skipped" in line)
    assert f"meta.{name.partition('.')[0]}" in line and "00000004/state/manifest.json" in line
    assert any("resumed from step 2" in line for line in said)
    assert [at for at, _ in found] == [1, 2, 3, 4, 5]


def change_fact(workdir, at: int, name: str, value) -> None:
    """Writes a fact into a step's manifest, whose checksum is made again."""
    path = workdir / "checkpoints" / f"{at:08d}" / "state" / "manifest.json"
    body = json.loads("{" + path.read_text().partition("\n")[2])
    *sections, last = ["meta", *name.split(".")]
    place = body
    for section in sections:
        place = place[section]
    place[last] = value
    rest = json.dumps(body)[1:] + "\n"
    path.write_text('{"sha256": "' + hashlib.sha256(rest.encode()).hexdigest() + '",\n' + rest)
