"""Laws of a run's checkpoints: what is kept, skipped, refused, and what a failed save leaves behind."""

import errno
import json
import os
import pathlib
import shutil
import subprocess
import time
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax import checkpoint
from mm01_jax.checkpoint import snapshot, steps
from tests.checkpoint.standin import META, abstract, bits, make_mesh, make_model, make_state


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(1, 2, 1, 2)


@pytest.fixture(scope="module")
def states(mesh):
    return [make_state(mesh, seed) for seed in range(4)]


@pytest.fixture
def run(tmp_path, states):
    """A work directory with steps 0, 1, 2."""
    with checkpoint.Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in range(3):
            checkpoints.save(step, states[step], META | {"data": {"position": step}})
    return tmp_path


def listed(workdir) -> list[str]:
    """Names in the checkpoints directory; the folder of retired steps, empty between saves, does not count."""
    names = {p.name for p in (workdir / "checkpoints").iterdir()}
    return sorted(names - {"retired"})


def restore(workdir, state, said=None):
    with checkpoint.Checkpoints(workdir, log=said.append if said is not None else print) as checkpoints:
        return checkpoints.restore_latest(abstract(state))


def test_the_newest_step_comes_back_with_its_meta(run, states):
    restored = restore(run, states[0])
    assert restored.step == 2
    assert restored.meta == META | {"data": {"position": 2}}
    assert bits(restored.state) == bits(states[2])


def test_an_empty_work_directory_restores_nothing(tmp_path, states):
    assert restore(tmp_path, states[0]) is None
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_meta() is None


def test_arrays_donated_right_after_save_are_saved_as_they_were(tmp_path, mesh):
    state = make_state(mesh, seed=9)
    expected = bits(state)
    shapes = abstract(state)
    double = jax.jit(lambda tree: jax.tree.map(lambda x: x + x, tree), donate_argnums=0)
    with jax.set_mesh(mesh), checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, META)
        jax.block_until_ready(double(state))
        assert bits(checkpoints.restore_latest(shapes).state) == expected


def test_a_restored_state_can_be_donated(run, states):
    state = restore(run, states[0]).state
    jax.jit(lambda tree: jax.tree.map(lambda x: x + x, tree), donate_argnums=0)(state)
    assert all(x.is_deleted() for x in jax.tree.leaves(state))


def test_only_the_newest_steps_are_kept_and_nothing_else_stays(tmp_path, states):
    with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (10, 20, 30, 100):
            checkpoints.save(step, states[0], META)
    assert listed(tmp_path) == ["00000030", "00000100"]
    assert not any((tmp_path / "checkpoints/retired").iterdir())
    with pytest.raises(ValueError, match="keep=0"):
        checkpoint.Checkpoints(tmp_path, keep=0)


def test_saving_a_step_that_is_there_is_refused_and_leaves_it_alone(run, states):
    with checkpoint.Checkpoints(run) as checkpoints, pytest.raises(checkpoint.SaveFailed, match="is there already"):
        checkpoints.save(2, states[3], META)
    assert bits(restore(run, states[0]).state) == bits(states[2])


def test_a_damaged_newest_step_is_skipped_by_name_and_its_number_can_be_saved_again(run, states):
    victim = run / "checkpoints/00000002/state/arrays/model.stacks.0.experts.gate/c/0/0/0/0/0"
    raw = bytearray(victim.read_bytes())
    raw[100] ^= 1
    victim.write_bytes(raw)
    said = []
    restored = restore(run, states[0], said)
    assert restored.step == 1 and bits(restored.state) == bits(states[1])
    assert str(victim) in said[0] and "model/stacks/0/experts/gate" in said[0]
    assert listed(run) == ["00000000", "00000001", "damaged"]
    with checkpoint.Checkpoints(run) as checkpoints:
        checkpoints.save(2, states[3], META)
    assert bits(restore(run, states[0]).state) == bits(states[3])


def test_a_state_that_is_refused_is_dropped_before_an_older_one_is_restored(run, states, monkeypatch):
    refused, restore = [], steps.Checkpoint.restore

    def restoring(self, state):
        assert not any(leaf() for leaf in refused)
        return restore(self, state)

    def judge(found):
        if found.step > 0:
            refused.append(weakref.ref(jax.tree.leaves(found.state)[0]))
            raise checkpoint.CheckpointError("not this one")

    monkeypatch.setattr(steps.Checkpoint, "restore", restoring)
    with checkpoint.Checkpoints(run) as checkpoints:
        assert checkpoints.restore_latest(abstract(states[0]), judge).step == 0
    assert len(refused) == 2


def test_a_step_that_cannot_be_retired_is_said_and_the_new_one_is_saved(run, states, monkeypatch):
    def rename(path, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    said = []
    with checkpoint.Checkpoints(run, keep=3, log=said.append) as checkpoints:
        retire = checkpoints._retire

        def refused():
            with monkeypatch.context() as patch:
                patch.setattr(pathlib.Path, "rename", rename)
                retire()

        checkpoints._retire = refused
        checkpoints.save(3, states[3], META)
        checkpoints.wait()
    assert len(said) == 1 and "1 folder could not be retired, the first " in said[0] and "00000000: " in said[0]
    assert listed(run) == ["00000000", "00000001", "00000002", "00000003"]


def test_a_damaged_array_with_a_right_crc_is_still_refused(run, states, mesh):
    # What Orbax alone would accept: a whole, well-formed file with other numbers in it.
    name = "state/arrays/model.embed/c/0/0"
    shutil.copyfile(run / "checkpoints/00000001" / name, run / "checkpoints/00000002" / name)
    said = []
    assert restore(run, states[0], said).step == 1
    assert "tensor model/embed" in said[0] and "arrays/model.embed/c/0/0" in said[0]


def test_a_step_under_the_number_of_another_is_refused(run, states):
    (run / "checkpoints/00000002").rename(run / "checkpoints/00000007")
    said = []
    assert restore(run, states[0], said).step == 1
    assert "is of step 2, and lies where step 7 should" in said[0]


def test_a_directory_with_steps_of_which_none_verifies_is_refused(run, states):
    for step in (run / "checkpoints").iterdir():
        os.truncate(step / "state/manifest.json", 100)
    with pytest.raises(checkpoint.NoValidCheckpoint, match="none of the 3 steps .*manifest.json"):
        restore(run, states[0])
    assert listed(run) == ["00000000", "00000001", "00000002"]


def test_of_many_damaged_steps_the_newest_are_tried_and_the_rest_is_said(run, states):
    for step in range(3, 2000):
        (run / f"checkpoints/{step:08d}").symlink_to("00000002")
    (run / "checkpoints/00000002/state/config.json").write_text("{}")
    said = []
    with pytest.raises(checkpoint.NoValidCheckpoint, match="newest 12 steps verifies; the 1,988 before step 1988"):
        restore(run, states[0], said)
    assert len(said) == 12
    with pytest.raises(checkpoint.NoValidCheckpoint, match="the 1,988 before step 1988"):
        checkpoint.open_checkpoint(run)


def test_a_sound_step_of_another_model_is_refused_with_every_difference(run, mesh):
    shapes = {"embed": ((64, 8), (None, None)), "extra": ((3,), (None,))}
    with pytest.raises(checkpoint.NoValidCheckpoint) as error:
        restore(run, make_state(mesh, shapes=shapes))
    text = str(error.value)
    assert "missing model/extra" in text and "surplus model/head" in text
    assert "model/embed: stored float32[32, 8], wanted float32[64, 8]" in text


def test_weights_alone_are_loaded_in_the_dtype_asked_for(run, mesh, states):
    wanted = abstract(make_model(mesh, 0, "bfloat16"))
    model = checkpoint.load_weights(run, wanted)
    expected = jax.tree.map(lambda x, w: x.astype(w.dtype), states[2].model, wanted)
    assert bits(model) == bits(expected)
    assert json.loads(checkpoint.open_checkpoint(run).config_json) == META["config"]


def test_a_failed_save_is_reported_once_and_earlier_steps_stay(run, states, monkeypatch):
    def full(self, root):
        (root / "arrays").mkdir()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with checkpoint.Checkpoints(run) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(snapshot.Snapshot, "write", full)
            checkpoints.save(3, states[3], META)
            with pytest.raises(checkpoint.SaveFailed, match="No space left"):
                _poll(checkpoints)
        checkpoints.check()
        assert listed(run) == ["00000000", "00000001", "00000002"]
        checkpoints.save(3, states[3], META)
        assert checkpoints.restore_latest(abstract(states[0])).step == 3


def _poll(checkpoints):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        checkpoints.check()
        time.sleep(0.01)


def test_a_save_without_room_is_refused_before_it_starts(run, states, monkeypatch):
    usage = shutil.disk_usage(run)._replace(free=1000)
    monkeypatch.setattr(steps.shutil, "disk_usage", lambda _: usage)
    with (
        checkpoint.Checkpoints(run) as checkpoints,
        pytest.raises(checkpoint.SaveFailed, match="needs .* bytes, .* has 1,000 free"),
    ):
        checkpoints.save(3, states[3], META)


def test_a_full_disk_is_reported_and_earlier_steps_stay(tmp_path, states, monkeypatch):
    state = states[0]
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", tmp_path], capture_output=True)
    if mount.returncode:
        pytest.skip(f"mounting a tmpfs is refused: {mount.stderr.decode().strip()}")
    try:
        # The estimate must not see it coming: other processes fill disks too.
        monkeypatch.setattr(steps.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 2**60))
        with checkpoint.Checkpoints(tmp_path, keep=20) as checkpoints:
            with pytest.raises(checkpoint.SaveFailed, match="No space left|RESOURCE_EXHAUSTED"):
                for step in range(9):
                    checkpoints.save(step, state, META)
                    checkpoints.wait()
            kept = listed(tmp_path)
            assert kept and all(name.isdecimal() for name in kept)
            restored = checkpoints.restore_latest(abstract(state))
            assert restored.step == int(kept[-1]) and bits(restored.state) == bits(state)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_leaf_paths_are_those_of_the_model_and_of_its_moments(states):
    paths = checkpoint.leaf_paths(states[0])
    assert "model/stacks/0/mixer/value" in paths and "opt_state/0/mu/stacks/0/experts/gate" in paths and "step" in paths
    stacks = dict(zip(paths, checkpoint.leaf_stacks(states[0]), strict=True))
    assert stacks["opt_state/0/nu/stacks/0/experts/down"] == 3 and stacks["model/stacks/0/norm"] == 2
    assert stacks["model/embed"] == stacks["step"] == stacks["opt_state/0/count"] == 0


def test_names_that_could_leave_the_directory_are_refused():
    for key in ("../x", "a/b", "a.b", ""):
        with pytest.raises(ValueError, match="cannot be stored"):
            checkpoint.leaf_paths({key: jnp.zeros(1)})


def test_a_manifest_is_one_json_document_that_checks_itself(run):
    path = run / "checkpoints/00000002/state/manifest.json"
    body = json.loads(path.read_text())
    assert body["step"] == 2 and body["meta"]["data"] == {"position": 2} and body["versions"]["jax"] == jax.__version__
    raw = path.read_bytes()
    random = np.random.default_rng(0)
    for bit in random.choice(len(raw) * 8, 200, replace=False).tolist():
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(checkpoint.CheckpointError, match="manifest.json"):
            checkpoint.open_checkpoint(run / "checkpoints/00000002")


def test_who_opens_a_run_whose_newest_step_is_damaged_hears_which_is_read_and_why(run, states):
    assert checkpoint.open_checkpoint(run).notice == ""
    manifest = run / "checkpoints/00000002/state/manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    opened = checkpoint.open_checkpoint(run)
    assert opened.manifest.step == 1
    assert "checkpoints/00000001 is read, an older step of its run" in opened.notice
    assert f"{manifest}: the manifest does not match its own checksum" in opened.notice
