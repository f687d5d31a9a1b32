"""Conversations with images as what `decoding.generate` takes: prompts, tiles, index tables."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mm01_jax.config import VisionConfig
from mm01_jax.data.conversations import render
from mm01_jax.data.image_grid import text_table
from mm01_jax.data.images.opening import decode, open_image
from mm01_jax.data.images.processor import layout_of, make_tiles, normalise
from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.inference.decoding import Images

File = str | os.PathLike | bytes


def look(files: Sequence[File], vision: VisionConfig) -> tuple[list, np.ndarray]:
    """(layout of each image, the tiles of all of them (n, 3, side, side) float32).

    Raises:
      ImageError: names the image that is none.
    """
    layouts, tiles = [], [np.zeros((0, 3, vision.image_size, vision.image_size), np.float32)]
    for number, file in enumerate(files, start=1):
        name = f"image {number}" if isinstance(file, bytes) else os.fspath(file)
        image = open_image(file, name)
        layouts.append(layout_of(image.size, vision, name))
        tiles.append(normalise(make_tiles(decode(image, name), vision, name)))
    return layouts, np.concatenate(tiles)


def prompts(
    conversations: Sequence[Sequence[dict[str, Any]]],
    files: Sequence[Sequence[File]],
    tokenizer: Tokenizer,
    vision: VisionConfig,
) -> tuple[list[np.ndarray], Images]:
    """Prompts that the assistant is to answer, and what they show.

    Args:
      files: the images of each conversation, in the order of their `<image>` marks.

    Raises:
      ImageError: as `look`. ValueError: more or fewer marks than images.
    """
    ids, index, seen = [], [], [look(some, vision) for some in files]
    for conversation, (layouts, _) in zip(conversations, seen, strict=True):
        tokens = [layout.num_tokens for layout in layouts]
        ids.append(render(conversation, tokenizer, tokens, generate=True).ids)
        index.append(text_table(ids[-1] == vision.image_token, layouts))
    most = max(1, *(len(tiles) for _, tiles in seen))
    padded = [np.pad(tiles, [(0, most - len(tiles)), *[(0, 0)] * 3]) for _, tiles in seen]
    return ids, Images(np.stack(padded), index)
