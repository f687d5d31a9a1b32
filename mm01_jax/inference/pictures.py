"""Conversations with images as what the engine takes: prompts, tiles, index tables."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mm01_jax.config import VisionConfig
from mm01_jax.data.conversations import render
from mm01_jax.data.image_grid import text_table
from mm01_jax.data.images.opening import ImageError, decode, open_image
from mm01_jax.data.images.processor import layout_of, make_tiles, normalise
from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.files import shown
from mm01_jax.inference.asked import Asked, Shown

File = str | os.PathLike | bytes


def check_sound(files: Sequence[File], root: pathlib.Path | None = None) -> None:
    """Refuses what is no sound image, and with `root` what does not lie in that folder.

    Raises:
      ImageError: names the image that is none.
    """
    for number, file in enumerate(files, start=1):
        name = _name(file, number)
        decode(open_image(file, name, root), name)


def ask(
    conversation: Sequence[dict[str, Any]],
    files: Sequence[File],
    tokenizer: Tokenizer,
    vision: VisionConfig,
    context: int | None = None,
) -> Asked:
    """A prompt that the assistant is to answer. Of the images nothing but their headers is read.

    Args:
      files: the images, in the order of the `<image>` marks.
      context: the most tokens that prompt and answer may have together; None: any number.

    Raises:
      ImageError: an image that is none, or ends beyond the context. ValueError: more or fewer marks than images.
    """
    names = [_name(file, number) for number, file in enumerate(files, start=1)]
    sizes = [open_image(file, name).size for file, name in zip(files, names, strict=True)]
    layouts = [layout_of(size, vision, name) for size, name in zip(sizes, names, strict=True)]
    tokens = [layout.num_tokens for layout in layouts]
    ids = render(conversation, tokenizer, tokens, generate=True).ids
    places = np.flatnonzero(ids == vision.image_token)
    for end, taken, name in zip(np.cumsum(tokens), tokens, names, strict=True):
        if context is not None and places[end - 1] + 1 >= context:
            raise ImageError(
                f"{name}: takes {taken:,} tokens and ends at token {places[end - 1] + 1:,} of its prompt; allowed: "
                f"before {context:,}, the context (train.sequence_length of the checkpoint's config)"
            )
    return Asked(ids, text_table(ids == vision.image_token, layouts), tuple(files))


def show(asked: Asked, vision: VisionConfig) -> Shown:
    """The pixels of all images of a prompt.

    Raises:
      ImageError: names the image that is none.
    """
    tiles = []
    for number, file in enumerate(asked.files, start=1):
        name = _name(file, number)
        tiles.append(normalise(make_tiles(decode(open_image(file, name), name), vision, name)))
    return Shown(np.concatenate(tiles), asked.index)


def num_tiles(asked: Asked, vision: VisionConfig) -> int:
    """Of all images of a prompt: the table's last patch is of the last tile."""
    return 0 if asked.index is None else -(-int(asked.index.max()) // vision.num_patches)


def prompts(
    conversations: Sequence[Sequence[dict[str, Any]]],
    files: Sequence[Sequence[File]],
    tokenizer: Tokenizer,
    vision: VisionConfig,
) -> tuple[list[np.ndarray], list[Shown]]:
    """Prompts that the assistant is to answer, and what they show; files and errors are those of `ask`."""
    asked = [ask(said, some, tokenizer, vision) for said, some in zip(conversations, files, strict=True)]
    return [one.ids for one in asked], [show(one, vision) for one in asked]


def _name(file: File, number: int) -> str:
    return f"image {number}" if isinstance(file, bytes) else shown(os.fspath(file))
