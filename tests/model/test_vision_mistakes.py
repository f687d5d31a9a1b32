"""Each typical porting mistake of vision is far outside what the parity tests allow (docs/model.md H).

Thirty-seven show in the packed features, seven change how many tokens an image takes, two show in the logits alone.
"no unpad" and "unpad on the wrong axis" coincide, for the wrong axis crops nothing.
"""

import functools

import numpy as np
import pytest

from tests.reference import tiles, vision, vision_fixture
from tests.reference.test_reference_fixture import BOUND
from tests.reference.vision_mistakes import MISTAKES, made
from tests.slow import slow_but

# Largest error of the packed features, of the logits (of text positions alone where the token count changes).
PUBLISHED = {
    "vision quick_gelu": (3.62e-02, 9.83e-01),
    "vision tanh gelu": (7.40e-04, 1.97e-03),
    "projector tanh gelu": (9.13e-04, 3.03e-03),
    "projector quick_gelu": (4.56e-02, 1.26e00),
    "feature layer -2": (3.55e00, 4.54e00),
    "post_layernorm applied": (3.01e00, 2.82e00),
    "class token kept": (5.37e00, 5.28e00),
    "class position last": (3.62e00, 4.37e00),
    "pre_layrnorm skipped": (2.43e00, 4.01e00),
    "attention across tiles": (3.30e00, 3.65e00),
    "patches channels last": (5.04e00, 6.12e00),
    "white padding": (4.69e00, 5.49e00),
    "grey padding": (3.21e00, 4.04e00),
    "padding after normalising": (2.97e00, 4.33e00),
    "pasted top left": (5.47e00, 5.52e00),
    "resized size rounded up": (2.91e00, 3.93e00),
    "stretched": (4.99e00, 5.40e00),
    "bilinear": (6.63e-01, 1.67e00),
    "lanczos": (2.50e-01, 1.43e00),
    "nearest": (2.09e00, 2.82e00),
    "bicubic in float": (2.03e-01, 1.20e00),
    "thumbnail keeps its ratio": (5.13e00, 5.30e00),
    "thumbnail of the canvas": (4.98e00, 5.44e00),
    "thumbnail tokens last": (5.63e00, 7.21e00),
    "thumbnail tile last": (5.60e00, 5.82e00),
    "no /255": (4.74e00, 6.04e00),
    "ImageNet mean and std": (4.59e-01, 1.61e00),
    "mean and std 0.5": (2.44e00, 3.48e00),
    "BGR": (4.27e00, 4.94e00),
    "tiles transposed": (4.91e00, 4.82e00),
    "tiles cut down the columns": (5.37e00, 5.76e00),
    "tiles taken down the columns": (5.49e00, 5.76e00),
    "grid swapped": (None, 3.25e00),
    "size swapped in unpad": (None, 2.47e00),
    "tiles not interleaved": (5.67e00, 5.16e00),
    "map flattened down the columns": (5.54e00, 5.78e00),
    "no unpad": (None, 1.43e00),
    "unpad on the wrong axis": (None, 1.43e00),
    "unpad rounded up": (None, 1.43e00),
    "unpad keeps exactly": (None, 7.10e-01),
    "unpad at the end": (5.15e00, 5.01e00),
    "no newline": (None, 1.49e00),
    "newline first": (5.37e00, 7.13e00),
    "newline zero": (2.63e00, 3.31e00),
    "images reversed": (3.19e-06, 6.08e00),
    "one position an image": (3.19e-06, 7.42e-01),
}
IN_LOGITS_ALONE = ("images reversed", "one position an image")


@functools.cache
def mistaken(name: str) -> list[np.ndarray]:
    """The tokens of every image, with the mistake."""
    config, weights = vision_fixture.config(), vision_fixture.weights()
    with made(MISTAKES[name]):
        return [
            vision.image_tokens(
                config, weights, tiles.make_tiles(config, vision_fixture.image(i)), vision_fixture.size(i)
            )
            for i in range(5)
        ]


def test_every_published_mistake_is_made():
    assert MISTAKES.keys() == PUBLISHED.keys() and len(MISTAKES) == 46


@pytest.mark.parametrize("name", PUBLISHED)
def test_mistake_moves_packed_features_by_the_published_amount_or_changes_their_number(name):
    want = [vision_fixture.load()[f"packed{i}"] for i in range(5)]
    got, largest = mistaken(name), PUBLISHED[name][0]
    if largest is None:
        assert any(len(a) != len(b) for a, b in zip(got, want, strict=True))
        return
    error = max(np.abs(a - b).max() for a, b in zip(got, want, strict=True))
    np.testing.assert_allclose(error, largest, rtol=0.005)  # the third printed digit
    scale = max(np.abs(x).max() for x in want)
    assert name in IN_LOGITS_ALONE or error > 10 * BOUND * scale


def logit_error(name: str) -> float:
    """Largest of all texts with images."""
    config, golden, errors = vision_fixture.config(), vision_fixture.load(), []
    for case in vision_fixture.WITH_IMAGES:
        ids, images = golden[f"{case}:expanded"], vision_fixture.images_of(case)
        packed, want = [mistaken(name)[i] for i in images], golden[f"{case}:logits"]
        placed = packed[::-1] if name == "images reversed" else packed  # each takes its own number of tokens
        told = expanded(config, ids, [len(golden[f"packed{i}"]) for i in images], [len(tokens) for tokens in placed])
        with made(MISTAKES[name]):
            got = vision.vl_forward(config, vision_fixture.weights(), told, packed).logits_BSV[0]
        if len(told) != len(ids) or PUBLISHED[name][0] is None:  # text positions stand against each other
            image = config.image_token_index
            got, want = got[told != image], want[ids != image]
        errors.append(np.abs(got - want).max(initial=0.0))
    return max(errors)


def expanded(config, ids: np.ndarray, counts: list[int], new_counts: list[int]) -> np.ndarray:
    """The ids with another number of tokens for each image."""
    out, at = [], 0
    rest = iter(zip(counts, new_counts, strict=True))
    while at < len(ids):
        step, new = next(rest) if ids[at] == config.image_token_index else (1, 1)
        out += [ids[at]] * new
        at += step
    return np.array(out)


@pytest.mark.parametrize("name", slow_but(IN_LOGITS_ALONE, PUBLISHED))
def test_mistake_moves_logits_by_the_published_amount(name):
    np.testing.assert_allclose(logit_error(name), PUBLISHED[name][1], rtol=0.005)


def test_the_two_unpaddings_that_crop_nothing_coincide():
    for one, other in zip(mistaken("no unpad"), mistaken("unpad on the wrong axis"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_rounding_the_new_length_as_newer_code_does_is_no_mistake(monkeypatch):
    right = [vision_fixture.load()[f"packed{i}"] for i in range(5)]
    monkeypatch.setattr(vision, "new_length", lambda of, by, other: int(round(of * (by / other), 7)))
    config, weights = vision_fixture.config(), vision_fixture.weights()
    for i, want in enumerate(right):
        pixels = tiles.make_tiles(config, vision_fixture.image(i))
        got = vision.image_tokens(config, weights, pixels, vision_fixture.size(i))
        assert np.abs(got - want).max() < BOUND * np.abs(want).max()
