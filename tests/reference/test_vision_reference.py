"""The NumPy reference of vision reproduces what the original code computed, stage by stage (docs/model.md C)."""

import functools

import numpy as np
import pytest

from tests.reference import losses, tiles, vision, vision_fixture
from tests.reference.test_reference_fixture import BOUND, relative_error

NUM_IMAGES = 5
CONFIG, WEIGHTS = vision_fixture.config(), vision_fixture.weights()


@functools.cache
def pixels(index: int) -> np.ndarray:
    """(T, 3, side, side) of one image of the fixture."""
    return tiles.make_tiles(CONFIG, vision_fixture.image(index))


@functools.cache
def packed(index: int) -> np.ndarray:
    """One image's tokens."""
    return vision.image_tokens(CONFIG, WEIGHTS, pixels(index), vision_fixture.size(index))


@pytest.mark.parametrize("index", range(NUM_IMAGES))
def test_every_stage_of_an_image_is_the_original_s(index):
    golden, w = vision_fixture.load(), vision.exact(WEIGHTS)
    stride = vision_fixture.meta()["pixels_stride"][index]
    assert relative_error(pixels(index)[:, :, ::stride, ::stride], golden[f"pixels{index}"]) < BOUND
    hidden = vision.tower(CONFIG, w, pixels(index))
    projected = vision.project(w, vision.without_class(hidden))
    assert relative_error(hidden, golden[f"vit{index}"]) < BOUND
    assert relative_error(projected, golden[f"proj{index}"]) < BOUND
    assert relative_error(packed(index), golden[f"packed{index}"]) < BOUND


@pytest.mark.parametrize("case", vision_fixture.CASES)
def test_logits_states_and_loss_of_a_text_with_images_are_the_original_s(case):
    golden, ids = vision_fixture.load(), vision_fixture.load()[f"{case}:expanded"]
    result = vision.vl_forward(CONFIG, WEIGHTS, ids, [packed(i) for i in vision_fixture.images_of(case)])
    assert relative_error(result.logits_BSV[0], golden[f"{case}:logits"]) < BOUND
    for layer, state in enumerate(result.states):
        assert relative_error(state[0], golden[f"{case}:state{layer}"]) < BOUND
    targets, counts = losses.next_tokens(ids[None], np.zeros((1, len(ids)), int))
    counts &= targets != CONFIG.image_token_index  # an image's tokens are no targets
    facts = vision_fixture.meta()["cases"][case]
    if counts.any():
        assert counts.sum() == facts["n_targets"]
        loss = losses.cross_entropy(result.logits_BSV, targets, counts)
        assert loss == pytest.approx(facts["loss"], rel=1e-6)
