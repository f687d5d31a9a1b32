"""The tower's pre-training: its contrast is that of a loop in NumPy, its words see no image, any mesh trains it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import vl_tiny_tower
from mm01_jax.config import MeshConfig, Rules
from mm01_jax.data.pipeline import batches
from mm01_jax.model import multimodal
from mm01_jax.train import loop
from mm01_jax.train.metrics_file import read_metrics
from mm01_jax.train.objectives import captions_and_contrast, pretrain
from tests import small
from tests.data import conversation_data as data

ROWS, LENGTH, TOWER = 4, 256, vl_tiny_tower.get_config()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return data.write_array_record(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def batch(source):
    """Rows of up to three samples, each of no, one or two images."""
    return next(batches(data.opened(source, LENGTH).train, 0, lambda _: ROWS, vocab_size=320))[1]


def config(source, **changes):
    """`vl_tiny_tower` with the smallest of everything."""
    sizes = {"train__sequence_length": LENGTH, "train__batch_size": 8, "train__steps": 2, "train__eval_every": 2}
    base = small.replace(small.config(source), data=TOWER.data, **sizes, train__objective=TOWER.train.objective)
    return small.replace(base, data__source=str(source), data__held_out=0.2, vision=data.VISION, **changes)


def arrays(batch, width: int = 8):
    """Random features and words."""
    random, tiles = np.random.default_rng(0), batch.tiles.shape[1]
    shapes = (ROWS, tiles, data.VISION.num_patches, width), (*batch.tokens.shape, width)
    return tuple(random.standard_normal(shape).astype(np.float32) for shape in shapes)


def by_hand(features, words, batch) -> tuple[float, int]:
    """(the loss in float64, samples that have an image), one sample after another."""
    images, captions = [], []
    for row in range(ROWS):
        for sample in range(batch.segments[row].max() + 1):
            (own,) = np.nonzero(batch.segments[row] == sample)
            shown = batch.image_index[row, own]
            if not (shown > 0).any():
                continue
            tile = (shown[shown > 0][0] - 1) // data.VISION.num_patches
            images.append(features[row, tile].astype(np.float64).mean(axis=0))
            captions.append(words[row, own[batch.weights[row, own] > 0][-1]].astype(np.float64))
    u, v = (np.stack(x) / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, captions))
    similar = u @ v.T / captions_and_contrast.TEMPERATURE
    lost = [np.log(np.exp(similar).sum(axis=axis)) - np.diagonal(similar) for axis in (0, 1)]
    return float(np.mean(lost)), len(images)


def test_contrast_is_that_of_a_loop_over_samples_with_images_whatever_the_order_of_a_row(batch):
    features, words = arrays(batch)
    expected, count = by_hand(features, words, batch)
    samples = sum(int(row.max()) + 1 for row in batch.segments)
    assert ROWS < count < samples
    contrast = jax.jit(captions_and_contrast.contrast)
    np.testing.assert_allclose(contrast(features, words, batch), expected, rtol=1e-6)
    order = np.random.default_rng(1).permutation(LENGTH)
    dealt = jax.tree.map(lambda x: x[:, order], batch._replace(tiles=None))._replace(tiles=batch.tiles)
    np.testing.assert_allclose(contrast(features, words[:, order], dealt), expected, rtol=1e-6)


@pytest.fixture(scope="module")
def model(source):
    with small.one_device():
        return multimodal.build(config(source), rngs=nnx.Rngs(params=0))


def run(objective, model, batches, train) -> list[dict[str, np.ndarray]]:
    """The losses of each batch, by one program."""
    losses = small.unoptimised(lambda model, batch: objective(model, batch, jnp.sum(batch.weights), 1.0, train)[1][0])
    with small.one_device():
        return [jax.tree.map(np.asarray, losses(model, batch)) for batch in batches]


def test_the_words_that_are_told_apart_have_not_seen_the_images(batch, model, source, monkeypatch):
    seen = lambda features, words, batch: jnp.stack([jnp.sum(jnp.abs(words)), jnp.sum(features)])  # noqa: E731
    monkeypatch.setattr(captions_and_contrast, "contrast", seen)
    other = batch._replace(tiles=batch.tiles + 1)
    one, two = run(captions_and_contrast.objective, model, (batch, other), config(source).train)
    assert one["contrast_loss"][0] == two["contrast_loss"][0]
    assert one["contrast_loss"][1] != two["contrast_loss"][1] and one["loss"] != two["loss"]


def test_of_rows_without_images_the_words_alone_are_learnt(batch, model, source):
    plain = batch._replace(tiles=None, image_index=None)
    objectives = (captions_and_contrast.objective, pretrain.objective)
    (found,), (expected,) = (run(objective, model, [plain], config(source).train) for objective in objectives)
    assert found.pop("contrast_loss") == 0 and found == expected


def course(source, workdir, mesh: MeshConfig, **changes) -> np.ndarray:
    """(steps, 3): the losses and the gradient norm of two steps."""
    # With an eps above the gradients' rounding an update is as near as its gradient.
    run = dataclasses.replace(config(source, optimizer__eps=1e-2, **changes), mesh=mesh)
    loop.run(run, str(workdir), log=lambda line: None)
    return np.array(
        [[record[key] for key in ("loss", "contrast_loss", "grad_norm")] for record in read_metrics(workdir)]
    )


MESHES = {
    "data 2, sequence 4 in zigzag": (MeshConfig(data=2, sequence=4), {"compute__sequence_layout": "zigzag"}),
    "data 2, expert 2, tensor 2": (MeshConfig(data=2, expert=2, tensor=2, rules=Rules(kv_heads=())), {}),
}


@pytest.fixture(scope="module")
def course_of_one_device(source, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        small.use_one_device(patch)
        return course(source, tmp_path_factory.mktemp("one") / "run", MeshConfig())


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_a_tower_takes_the_same_course_on_a_mesh(mesh, source, course_of_one_device, tmp_path):
    found = course(source, tmp_path / "run", MESHES[mesh][0], **MESHES[mesh][1])
    assert found.shape == course_of_one_device.shape == (2, 3) and (found > 0).all()
    # Sums of 2,048 tokens and 320 ids in other orders: sqrt(2,048) roundings of float32.
    far = np.abs(found - course_of_one_device) / course_of_one_device
    assert np.all(far <= 45 * np.finfo(np.float32).eps), far
