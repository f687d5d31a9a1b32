"""Training with images: what is frozen stays and takes no memory, a run resumes bit for bit, parts are taken over."""

import dataclasses

import jax
import numpy as np
import pytest

from mm01_jax import checkpoint
from mm01_jax.config import ConfigError, MeshConfig, Rules
from mm01_jax.train import loop, step
from mm01_jax.train.metrics_file import read_metrics
from tests import small
from tests.data import conversation_data as data
from tests.slow import slow_but

PARTS = ("text", "vision", "projector", "image_newline")


def config(source, **changes):
    base = small.config(
        source,
        data__records="conversations",
        train__sequence_length=data.LENGTH,
        train__steps=2,
        train__eval_every=2,
        train__eval_batches=1,
    )
    return small.replace(base, vision=data.VISION, **changes)


def weights(workdir) -> dict[str, np.ndarray]:
    """Path -> array of the newest step."""
    opened = checkpoint.open_checkpoint(workdir)
    return {
        path: np.stack([opened.read(path, index) for index in np.ndindex(leaf.shape[: leaf.stack])])
        for path, leaf in opened.leaves.items()
    }


def part(path: str) -> str:
    return path.partition("/")[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return data.write_array_record(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def stage1(source, tmp_path_factory):
    """(folder after two steps, after two more) of a run with a frozen text model."""
    workdir = tmp_path_factory.mktemp("stage1")
    frozen = config(source, optimizer__frozen=("text",))
    with pytest.MonkeyPatch.context() as patch:
        small.use_one_device(patch)
        loop.run(frozen, str(workdir / "half"), log=lambda line: None)
        before = weights(workdir / "half")
        loop.run(small.replace(frozen, train__steps=4), str(workdir / "half"), log=lambda line: None)
        loop.run(small.replace(frozen, train__steps=4), str(workdir / "whole"), log=lambda line: None)
    return workdir, before


def test_frozen_weights_stay_and_every_other_one_moves(stage1):
    workdir, before = stage1
    after = weights(workdir / "half")
    assert {part(path) for path in before} == {*PARTS}
    for path, weight in before.items():
        assert np.array_equal(weight, after[path]) == (part(path) == "text"), path


def test_a_resumed_run_is_the_run_that_did_not_stop(stage1):
    workdir, _ = stage1
    half, whole = (small.tree_digest(workdir / name / "checkpoints" / "00000004") for name in ("half", "whole"))
    assert half == whole


def test_frozen_parts_take_no_optimizer_memory_to_the_byte(source):
    frozen = config(source, optimizer__frozen=("text",))
    state = jax.eval_shape(lambda: step.init_state(frozen, jax.random.key(0)))
    trained = [state.model.vision, state.model.projector, state.model.image_newline]
    moments = sum(2 * 4 * leaf.size for leaf in jax.tree.leaves(trained))
    counters = 2 * 4  # steps, of Adam and of the schedule
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.opt_state)) == moments + counters


@pytest.mark.slow
def test_a_run_takes_its_text_model_from_one_run_and_its_tower_from_another(source, stage1, tmp_path, monkeypatch):
    small.use_one_device(monkeypatch)
    text = small.config(small.write_text(tmp_path / "text"), train__steps=1, train__eval_every=1)
    loop.run(text, str(tmp_path / "text_run"), log=lambda line: None)
    origins = f"{tmp_path / 'text_run'},{stage1[0] / 'half'}"
    with pytest.raises(ConfigError, match="one origin of text|one origin of the model"):
        loop.run(config(source), str(tmp_path / "both"), f"{tmp_path / 'text_run'},{tmp_path / 'text_run'}")
    tower = small.replace(config(source, train__steps=1), model__expert_dim=32)
    loop.run(tower, str(tmp_path / "tower"), log=lambda line: None)
    origins = f"{tmp_path / 'text_run'},{tmp_path / 'tower'}"
    loop.run(
        config(source, optimizer__frozen=PARTS[:3], train__steps=1), str(tmp_path / "run"), origins, lambda _: None
    )
    made, texts, towers = (weights(tmp_path / name) for name in ("run", "text_run", "tower"))
    assert all(np.array_equal(made[f"text/{path}"], weight) for path, weight in texts.items())
    seen = [path for path in made if part(path) == "vision"]
    assert seen and all(np.array_equal(made[path], towers[path]) for path in seen)


MESHES = {
    "expert 4, sequence 2": MeshConfig(expert=4, sequence=2),
    "data 4, expert 2": MeshConfig(data=4, expert=2),
    "data 2, tensor 2, sequence 2": MeshConfig(data=2, tensor=2, sequence=2, rules=Rules(kv_heads=())),
}


@pytest.fixture(scope="module")
def course_of_one_device(source, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        small.use_one_device(patch)
        return course(source, tmp_path_factory.mktemp("one") / "run", MeshConfig())


def course(source, workdir, mesh: MeshConfig) -> np.ndarray:
    """(steps, 2): loss and gradient norm of three steps of eight rows, in which some have images and some none."""
    # With an eps above the gradients' rounding an update is as near as its gradient.
    run = config(source, train__steps=3, train__batch_size=8, optimizer__eps=1e-2)
    loop.run(dataclasses.replace(run, mesh=mesh), str(workdir), log=lambda line: None)
    return np.array([(record["loss"], record["grad_norm"]) for record in read_metrics(workdir)])


@pytest.mark.parametrize("mesh", slow_but(list(MESHES)[:1], MESHES))
def test_training_on_images_takes_the_same_course_on_a_mesh(mesh, source, course_of_one_device, tmp_path):
    found = course(source, tmp_path / "run", MESHES[mesh])
    assert found.shape == course_of_one_device.shape == (3, 2)
    # Sums of 1,024 tokens and 320 ids in other orders: sqrt(1,024) roundings of float32.
    far = np.abs(found - course_of_one_device) / course_of_one_device
    assert np.all(far <= 32 * np.finfo(np.float32).eps), far
