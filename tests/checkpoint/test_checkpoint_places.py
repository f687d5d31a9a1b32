"""What lies where a checkpoint's folders should is named, whatever it is; a step lies under its own number."""

import dataclasses
import os
import shutil
import socket

import jax.numpy as jnp
import pytest

from mm01_jax.checkpoint import CheckpointError, Checkpoints, Unfit, load_weights, open_checkpoint, read_manifest
from mm01_jax.checkpoint.reader import CHECKPOINTS
from mm01_jax.convert.sources import is_checkpoint, open_source
from tests.checkpoint.standin import META, abstract, make_mesh, make_state


def _socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(path))  # at most 107 bytes


KINDS = {
    "a socket": _socket,
    "a FIFO": os.mkfifo,
    "a regular file": lambda path: path.write_text("{}"),
    "a device": lambda path: path.symlink_to("/dev/null"),
    "a link that leads to itself": lambda path: path.symlink_to(path.name),
    "No such file": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("name", [CHECKPOINTS, "state"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_folder_in_the_place_of_one_is_named(kind, name, tmp_path):
    KINDS[kind](tmp_path / name)
    assert is_checkpoint(tmp_path)
    for opens in (open_checkpoint, open_source):
        with pytest.raises(CheckpointError, match=rf"^{tmp_path}/{name}: .*{'' if kind == 'a device' else kind}"):
            opens(tmp_path)


def test_a_step_that_lies_under_another_number_is_refused_by_its_manifest(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, {"model": {"w": jnp.ones((2, 2))}}, {"config": {}})
        checkpoints.wait()
    steps = tmp_path / CHECKPOINTS
    shutil.copytree(steps / "00000002", steps / "00000004")
    with pytest.raises(
        CheckpointError, match="00000004/state/manifest.json: is of step 2, and lies where step 4 should"
    ):
        open_checkpoint(steps / "00000004")
    found = open_checkpoint(tmp_path)
    assert found.directory.parent == steps / "00000002" and "is of step 2" in found.notice


def test_a_folder_that_is_no_step_takes_no_step_s_place(tmp_path):
    """Neither one without a checkpoint in it, nor a name in the digits of another script, or of more than any step."""
    state = make_state(make_mesh(1, 1, 1, 1), 0)
    others = ["0000002\uff14", "9" * 20]

    def steps() -> list[str]:
        return sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir() if path.name != "retired")

    for name in ("00000015", *others):
        (tmp_path / CHECKPOINTS / name).mkdir(parents=True)
    for step, kept in ((10, ["00000010", "00000015"]), (20, ["00000010", "00000015", "00000020"])):
        with Checkpoints(tmp_path, keep=2) as checkpoints:
            checkpoints.save(step, state, META)
        assert steps() == sorted([*kept, *others])
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(30, state, META)
        assert checkpoints.restore_latest(abstract(state)).step == 30
    assert steps() == sorted(["00000020", "00000030", *others])


def test_a_step_has_one_name(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, {"model": {"w": jnp.ones((2, 2))}}, {"config": {}})
    steps = tmp_path / CHECKPOINTS
    for name in ("2", "000000002", "3"):  # of its number, or of one that this program has not saved
        shutil.copytree(steps / "00000002", steps / name)
    assert open_checkpoint(tmp_path).directory.parent == steps / "00000002"


def test_a_step_that_lacks_a_leaf_is_bad_data_by_name_and_an_older_one_is_restored(tmp_path):
    state = make_state(make_mesh(1, 1, 1, 1), 0)
    with Checkpoints(tmp_path) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, state, META)
    newest = tmp_path / CHECKPOINTS / "00000020" / "state"
    said = read_manifest(newest / "manifest.json")
    leaves = {name: leaf for name, leaf in said.leaves.items() if name != "model/embed"}
    (newest / "manifest.json").write_bytes(dataclasses.replace(said, leaves=leaves).to_bytes())
    with pytest.raises(Unfit, match=f"{newest} does not fit the model: missing embed$"):
        load_weights(tmp_path, abstract(state.model))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(abstract(state)).step == 10
