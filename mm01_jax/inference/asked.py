"""What is asked of a model: prompts and the images in them, refused by name before anything is computed."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mm01_jax.model.decoder import TextModel
from mm01_jax.model.multimodal import VLModel


class Asked(NamedTuple):
    """A prompt and what it shows.

    ids: (S,) int32. index: (S,) int32, their index table. files: the images; without any there is no table.
    """

    ids: np.ndarray
    index: np.ndarray | None = None
    files: tuple[str | os.PathLike | bytes, ...] = ()


class Images(NamedTuple):
    """What the image tokens of prompts show.

    tiles: (B, T, 3, side, side) float32, the normalised tiles of each prompt's images, padded to T. index: one index
    table (data/image_grid.py) as long as its prompt for each.
    """

    tiles: np.ndarray
    index: Sequence[np.ndarray]


def check_prompts(model: TextModel | VLModel, prompts: Sequence[np.ndarray], max_tokens: int) -> None:
    if max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens} must be at least 1")
    if not len(prompts):
        raise ValueError("no prompt; at least one is needed")
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {row} is empty; at least one token is needed")
        if int(np.min(prompt)) < 0 or int(np.max(prompt)) >= model.config.vocab_size:
            bad = int(np.max(prompt)) if int(np.min(prompt)) >= 0 else int(np.min(prompt))
            raise ValueError(f"prompt {row} has id {bad}; allowed are 0 to {model.config.vocab_size - 1}")


def check_images(model: TextModel | VLModel, prompts: Sequence[np.ndarray], images: Images | None) -> None:
    if images is None:
        return
    if not isinstance(model, VLModel):
        raise ValueError("images were given to a model without a vision tower; it takes text alone")
    lengths = [[len(row) for row in rows] for rows in (prompts, images.index)]
    if lengths[0] != lengths[1]:
        raise ValueError(
            f"index tables of {lengths[1]} tokens for prompts of {lengths[0]}; each has its prompt's length"
        )
