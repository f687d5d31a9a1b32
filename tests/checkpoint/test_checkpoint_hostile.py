"""What a run's folder that somebody made on purpose costs whoever opens it, and what is said of it."""

import dataclasses
import errno
import os
import pathlib
import shutil
import tracemalloc

import numpy as np
import pytest

from mm01_jax import checkpoint, files
from mm01_jax.checkpoint import manifest, steps
from tests.checkpoint.standin import META, abstract, make_mesh, make_state


@pytest.fixture(scope="module")
def state():
    return make_state(make_mesh(1, 1, 1, 1), 0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, state):
    """A work directory with steps 0, 1, 2."""
    workdir = tmp_path_factory.mktemp("saved") / "run"
    with checkpoint.Checkpoints(workdir, keep=3) as checkpoints:
        for step in range(3):
            checkpoints.save(step, state, META)
    return workdir


@pytest.fixture
def run(saved, tmp_path):
    return pathlib.Path(shutil.copytree(saved, tmp_path / "run"))


@pytest.fixture
def undeletable(monkeypatch):
    """A folder with a file `kept` in it is too deep to be deleted."""
    remove = files.remove

    def refuse(path, root):
        if (path / "kept").exists():
            raise OSError(errno.ENAMETOOLONG, "not deleted: its folders are too deep", str(path))
        remove(path, root)

    monkeypatch.setattr(files, "remove", refuse)


def test_a_manifest_of_more_leaves_than_any_model_s_is_refused_before_they_are_looked_at(run, monkeypatch):
    path = run / "checkpoints/00000002/state/manifest.json"
    leaf = manifest.Leaf(shape=(), dtype="bool", stack=0, file=(), block=(), lanes=np.zeros(4, np.uint32))
    sound = manifest.read_file(path)
    many = sound.leaves | {f"model/x{number}": leaf for number in range(10_000)}
    path.write_bytes(dataclasses.replace(sound, leaves=many).to_bytes())
    with monkeypatch.context() as patch, pytest.raises(checkpoint.CheckpointError, match="allowed: at most 10,000"):
        patch.setattr(manifest, "_leaf", None)
        checkpoint.open_checkpoint(path.parents[1])
    assert len(checkpoint.open_checkpoint(path.parents[1], prefix="", most_leaves=20_000).leaves) == len(many)


def test_blocks_of_an_element_are_refused_where_they_are_very_many_in_all_leaves_together(run):
    path = run / "checkpoints/00000002/state/manifest.json"
    sound = manifest.read_file(path)
    lanes = np.zeros(4, np.uint32)
    leaf = manifest.Leaf(shape=(2**16,), dtype="float32", stack=0, file=(2**16,), block=(1,), lanes=lanes)
    large = dataclasses.replace(leaf, shape=(2**31,), file=(2**25,), block=(2**19,))
    for count in (3, 5):
        many = {"opt_state/large": large} | {f"model/x{number}": leaf for number in range(count)}
        path.write_bytes(dataclasses.replace(sound, leaves=sound.leaves | many).to_bytes())
        if count == 3:
            manifest.read_file(path)
    with pytest.raises(
        checkpoint.CheckpointError, match=r"leaves: 327,\d{3} blocks of less than 4,096 bytes; allowed: "
    ):
        manifest.read_file(path)


def test_files_of_an_element_are_refused_where_they_are_very_many_in_all_leaves_together(run):
    path = run / "checkpoints/00000002/state/manifest.json"
    sound = manifest.read_file(path)
    lanes = np.zeros(4, np.uint32)
    leaf = manifest.Leaf(shape=(2**12,), dtype="float32", stack=0, file=(1,), block=(1,), lanes=lanes)
    for count in (4, 5):  # of 16,384 and what all leaves have in 4 KiBs
        many = {f"model/x{number}": leaf for number in range(count)}
        path.write_bytes(dataclasses.replace(sound, leaves=sound.leaves | many).to_bytes())
        if count == 4:
            manifest.read_file(path)
    with pytest.raises(checkpoint.CheckpointError, match=r"20,\d{3} files of less than 4,096 bytes; allowed: .*16,"):
        manifest.read_file(path)


def test_a_manifest_that_is_opened_again_is_looked_at_once_and_again_when_it_has_changed(run, monkeypatch):
    path = run / "checkpoints/00000002/state/manifest.json"
    opened = checkpoint.open_checkpoint(run)
    monkeypatch.setattr(manifest, "_leaf", None)
    assert checkpoint.open_checkpoint(run).leaves == opened.leaves
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(checkpoint.CheckpointError, match="its own checksum"):
        checkpoint.open_checkpoint(path.parents[1])


def test_steps_are_tried_as_long_as_their_manifests_together_are_no_larger_than_one_may_be(run, monkeypatch):
    for config in run.glob("checkpoints/*/state/config.json"):
        config.write_text("{}")
    size = (run / "checkpoints/00000002/state/manifest.json").stat().st_size
    monkeypatch.setattr(manifest, "MOST_BYTES", size * 5 // 2)
    with pytest.raises(checkpoint.NoValidCheckpoint, match="newest 2 steps verifies; the 1 before step 1 are"):
        checkpoint.open_checkpoint(run)


def test_what_cannot_be_deleted_is_one_line_said_once_by_an_escaped_name(run, state, undeletable, capsys):
    for name in ("retired/0\x1b[2J", "retired/1\x1b[2J", "00000007.orbax-checkpoint-tmp-\x1b[2J"):
        (run / "checkpoints" / name / "kept").mkdir(parents=True)
    with checkpoint.Checkpoints(run) as checkpoints:
        for step in (3, 4):
            checkpoints.save(step, state, META)
            checkpoints.wait()
    (said,) = capsys.readouterr().out.splitlines()
    assert "3 folders could not be deleted, the first " in said and "\\x1b[2J: not deleted: its folders" in said


@pytest.mark.parametrize("name", ["retired", "damaged"])
def test_a_folder_for_steps_that_is_none_is_said_before_anything_is_trained(run, name):
    os.mkfifo(run / "checkpoints" / name)
    with pytest.raises(checkpoint.CheckpointError, match=f"{name}: is a FIFO, not a directory; allowed"):
        checkpoint.Checkpoints(run)
    (run / "checkpoints" / name).unlink()
    checkpoint.Checkpoints(run).close()  # nobody holds its lock


def test_of_very_many_folders_to_delete_some_are_deleted_at_a_time(run, monkeypatch):
    monkeypatch.setattr(steps, "_MOST_DELETED", 3)
    for number in range(5):
        (run / f"checkpoints/{number}.orbax-checkpoint-tmp-1").mkdir()
    for left in (2, 0):
        checkpoint.Checkpoints(run).close()
        assert len(list(run.glob("checkpoints/*tmp*"))) == left


def test_a_damaged_step_is_moved_aside_though_what_lay_there_cannot_be_deleted(run, state, undeletable):
    (run / "checkpoints/damaged/00000002/kept").mkdir(parents=True)
    (run / "checkpoints/00000002/state/config.json").write_text("{}")
    with checkpoint.Checkpoints(run) as checkpoints:
        assert checkpoints.restore_latest(abstract(state)).step == 1
    assert not (run / "checkpoints/00000002").exists()
    assert len(list((run / "checkpoints/damaged").glob("00000002.*/state/manifest.json"))) == 1


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, pathlib.Path.touch, lambda path: os.symlink("nowhere", path)])
def test_what_has_the_name_of_a_coming_step_and_is_none_is_set_aside_and_the_step_is_saved(run, state, make):
    place = run / "checkpoints/00000006"
    make(place)
    assert f"{place}/state" in checkpoint.open_checkpoint(run).notice
    with checkpoint.Checkpoints(run) as checkpoints:
        assert checkpoints.restore_latest(abstract(state)).step == 2
        checkpoints.save(6, state, META)
        checkpoints.wait()
        assert os.path.lexists(run / "checkpoints/damaged/00000006")
        assert checkpoints.restore_latest(abstract(state)).step == 6
        make(place.with_name("00000007"))  # while the run goes on
        with pytest.raises(checkpoint.SaveFailed, match="00000007 is there already"):
            checkpoints.save(7, state, META)


def test_a_manifest_of_very_many_digests_takes_little_more_than_its_bytes():
    digits, odd, holds = "0" * 8_000_000, "0" * 7_999_999, manifest._LEAF["lanes"].holds
    tracemalloc.start()
    try:
        assert holds(digits) and not holds(odd)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_a_run_that_is_a_step_as_well_is_refused_by_both_names(run):
    shutil.copytree(run / "checkpoints/00000001/state", run / "state")
    with pytest.raises(checkpoint.CheckpointError, match="both state, .* and checkpoints, "):
        checkpoint.open_checkpoint(run)
