"""A batch: what a step, an evaluation and a plan are given. NumPy arrays on a host, jax arrays on a mesh."""

from typing import NamedTuple

import jax
import numpy as np

Array = np.ndarray | jax.Array


class Batch(NamedTuple):
    """B rows of S tokens (docs/data.md).

    tokens: (B, S) int32. targets: (B, S) int32, the token after each. positions: (B, S) int32, in the document.
    segments: (B, S) int32 segment ids, < 0 is padding. weights: (B, S) float32 of the targets, 0 where there is none.
    With images, else None. tiles: (B, T, 3, side, side) float32, normalised pixels of each row's tiles, padded to T.
    image_index: (B, S) int32 index table (data/image_grid.py) into the features of the same row's tiles.
    """

    tokens: Array
    targets: Array
    positions: Array
    segments: Array
    weights: Array
    tiles: Array | None = None
    image_index: Array | None = None
