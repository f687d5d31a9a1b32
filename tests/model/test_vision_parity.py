"""The JAX VL model against the NumPy reference in float64: the loss, and the gradient of every leaf of vision."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm01_jax.convert import axes, table
from mm01_jax.data.batch import Batch
from mm01_jax.inference.scoring import score
from mm01_jax.model import vision as tower
from tests.model import jax_model, vl_model
from tests.reference import losses, vision, vision_fixture
from tests.reference.complex_step import directional_derivative
from tests.reference.test_vision_reference import pixels

CASE, IMAGES = "adjacent", [1, 2]  # two images of different grids, one cut above and below, the other not
CONFIG = vision_fixture.config()
IDS = vision_fixture.load()[f"{CASE}:expanded"]
ROUNDING = 1e-12  # sums of some thousand float64 products, each rounded to 1.1e-16 of its terms, through ten layers
TENSORS = table.tensors(vl_model.config().model, vl_model.config().vision)
LEAVES = sorted({tensor.leaf for tensor in TENSORS if not tensor.leaf.startswith("text/")})


def targets() -> tuple[np.ndarray, np.ndarray]:
    """(targets, whether each counts) of the text; an image's tokens are no targets."""
    target, counts = losses.next_tokens(IDS[None], np.zeros((1, len(IDS)), int))
    return target, counts & (target != CONFIG.image_token_index)


@functools.cache
def exact_weights() -> dict[str, np.ndarray]:
    return {name: weight.astype(np.float64) for name, weight in vision_fixture.weights().items()}


def reference_loss(weights):
    packed = [vision.image_tokens(CONFIG, weights, pixels(i), vision_fixture.size(i)) for i in IMAGES]
    return losses.cross_entropy(vision.vl_forward(CONFIG, weights, IDS, packed).logits_BSV, *targets())


@functools.cache
def differentiated():
    return _differentiated()


def _differentiated():
    """(loss, gradient by leaf path) of the JAX model in float64, as NumPy."""
    rows = vl_model.rows([(IDS, IMAGES)], pixels, length=len(IDS), num_tiles=6)
    target, counts = targets()

    def loss(model, tiles):
        weights = jnp.asarray(counts, jnp.float64)
        batch = Batch(rows.tokens, jnp.asarray(target), rows.positions, rows.segments, weights, tiles, rows.index)
        total, weight = score(model, batch, chunk=32)
        return total / weight

    with jax_model.float64_operations(), jax_model.one_device():
        model = vl_model.build(vl_model.config(), exact_weights(), "float64")
        tiles = np.concatenate([pixels(i) for i in IMAGES])[None]
        value, gradient = jax_model.compiled(jax.value_and_grad(loss))(model, tiles)
        return float(value), jax_model.leaf_arrays(gradient)


def test_loss_is_the_reference_s():
    np.testing.assert_allclose(differentiated()[0], reference_loss(exact_weights()), rtol=ROUNDING)


@pytest.mark.parametrize("leaf", LEAVES)
def test_gradient_of_every_leaf_of_vision_is_the_reference_s_by_complex_step(leaf):
    """Along one random direction of all the leaf's weights."""
    random, gradient = np.random.default_rng(len(leaf)), differentiated()[1][leaf]
    direction, ours, size = {}, 0.0, 0.0
    for tensor in TENSORS:
        if tensor.leaf == leaf:
            change = random.standard_normal(tensor.shape)
            direction[tensor.name] = change
            turned = axes.rearrange(change, tensor.row.torch_axes, tensor.row.our_axes, tensor.sizes)
            ours += (turned * gradient[tensor.index]).sum()
            size += np.abs(turned * gradient[tensor.index]).sum()
    # A bias of the keys moves all scores of a query alike: its gradient is zero, of which rounding is no share.
    floor = 1e-14 if leaf.endswith("key_bias") else 0.0
    assert abs(ours - directional_derivative(reference_loss, exact_weights(), direction)) <= ROUNDING * size + floor


def test_blocks_written_out_before_a_patch_that_nobody_sees_have_the_same_loss_and_gradients(monkeypatch):
    """As a training step has them on GPUs."""
    monkeypatch.setattr(tower, "unrolls", lambda vision: True)
    monkeypatch.setattr(tower, "unseen_patches", lambda patches, dtype: patches % 2)
    (loss, gradient), (found_loss, found) = differentiated(), _differentiated()
    np.testing.assert_allclose(found_loss, loss, rtol=ROUNDING)
    assert found.keys() == gradient.keys()
    for path, exact in gradient.items():
        assert np.max(np.abs(found[path] - exact)) <= ROUNDING * np.max(np.abs(exact)) + 1e-14, path


def test_norms_of_blocks_written_out_have_their_weights_in_float32(monkeypatch):
    seen, layer_norm = [], tower.layer_norm

    def noting(x, gain, bias, eps):
        seen.append((x.dtype.name, gain.dtype.name, bias.dtype.name))
        return layer_norm(x, gain, bias, eps)

    monkeypatch.setattr(tower, "unrolls", lambda vision: True)
    monkeypatch.setattr(tower, "layer_norm", noting)
    with jax_model.one_device():
        config = vl_model.config()
        compute = dataclasses.replace(config.compute, dtype="bfloat16", param_dtype="float32")
        model = tower.VisionTower(config.vision, compute, config.mesh.rules, rngs=nnx.Rngs(0))
        tiles = pixels(IMAGES[0])[None]
        jax.eval_shape(lambda m, x: m(x, training=True), model, tiles)
    assert set(seen) == {("bfloat16", "float32", "float32")}
