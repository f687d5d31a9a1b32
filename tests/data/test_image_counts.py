"""Placeholders equal features for any size, by an independent count in whole numbers; shapes of batches are few."""

import numpy as np
import pytest

from mm01_jax.data.image_grid import bucket, index_table, lay_out
from tests.data.image_samples import VISION


def layout(width: int, height: int):
    return lay_out((width, height), VISION.grids, 336, 14)


def counted(width_N: np.ndarray, height_N: np.ndarray) -> np.ndarray:
    """Tokens of many sizes at once, from the rules in words, with no line of the library: (N,) int64.

    The scale is a float64 there, so it is here; all that follows is whole.
    """
    best = np.full((2, len(width_N)), -1, np.int64)  # kept pixels, minus waste
    grid = np.zeros((2, len(width_N)), np.int64)
    for columns in range(1, 7):
        for rows in range(1, (6, 6, 6, 4, 3, 3)[columns - 1] + 1):
            across, down = 336 * columns, 336 * rows
            scale = np.minimum(across / width_N, down / height_N)
            kept = (width_N * scale).astype(np.int64) * (height_N * scale).astype(np.int64)
            kept = np.minimum(kept, width_N * height_N)
            spare = kept - across * down
            better = (kept > best[0]) | ((kept == best[0]) & (spare > best[1]))
            best = np.where(better, [kept, spare], best)
            grid = np.where(better, np.array([[columns], [rows]]), grid)
    across, down = 24 * grid
    wide = width_N * down > across * height_N
    high, broad = height_N * across // width_N, width_N * down // height_N
    rows = np.where(wide, down - (down - high) // 2 * 2, down)
    columns = np.where(wide, across, across - (across - broad) // 2 * 2)
    return 576 + rows * (columns + 1)


@pytest.mark.parametrize("count", [10**5, pytest.param(10**6, marks=pytest.mark.slow)])
def test_features_equal_placeholders_for_random_sizes(count):
    width, height = np.random.default_rng(count).integers(1, 4097, size=(2, count))
    sizes = list(zip(width.tolist(), height.tolist(), strict=True))
    placeholders = np.array([layout(*size).num_tokens for size in sizes])
    assert np.array_equal(placeholders, counted(width, height))
    for i in range(0, count, count // 500):
        assert len(index_table(layout(*sizes[i]), 3)) == placeholders[i]


def test_ten_thousand_random_images_are_at_most_eight_shapes_of_a_batch():
    """Rows of 16,384 tokens, as stage II has them: images until one does not fit."""
    sizes = np.random.default_rng(0).integers(1, 4097, size=(10_000, 2)).tolist()
    rows, tokens = [0], 0
    for size in sizes:
        one = layout(*size)
        if tokens + one.num_tokens > 16_384:
            rows.append(0)
            tokens = 0
        tokens += one.num_tokens
        rows[-1] += one.num_tiles
    shapes = {bucket(max(rows[i : i + 8])) for i in range(0, len(rows), 8)} | {bucket(n) for n in rows} | {0}
    assert len(shapes) <= 8, shapes
