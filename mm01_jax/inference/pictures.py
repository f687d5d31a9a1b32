"""Conversations with images as what the engine takes: prompts, tiles, index tables."""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mm01_jax.config import VisionConfig
from mm01_jax.data.conversations import END, check_marks, check_messages, render
from mm01_jax.data.image_grid import text_table
from mm01_jax.data.images.decoding import decode
from mm01_jax.data.images.opening import ImageError, Source, open_image
from mm01_jax.data.images.processor import layout_of, make_tiles, normalise
from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.files import quoted, shown
from mm01_jax.inference.asked import Asked, Shown
from mm01_jax.inference.engine_request import check_count
from mm01_jax.inference.engine_sizes import check_kind, check_tokenizer
from mm01_jax.inference.given_pictures import check_each, check_form, check_list


def check_sound(files: Sequence[Source], root: pathlib.Path | None = None) -> None:
    """Refuses what is no sound image, and with `root` what does not lie in that folder.

    Raises:
      ImageError: names the image that is none. ValueError: what is no list of pictures.
    """
    check_list("files", files)
    check_each("files", files)
    for number, file in enumerate(files, start=1):
        name = _name(file, number)
        decode(open_image(file, name, root), name)


def ask(
    conversation: Sequence[dict[str, Any]],
    files: Sequence[Source],
    tokenizer: Tokenizer,
    vision: VisionConfig,
    context: int | None = None,
    tools: Sequence[Any] = (),
) -> Asked:
    """A prompt that the assistant is to answer. Of the images nothing but their headers is read.

    Args:
      files: the images, in the order of the `<image>` marks.
      context: the most tokens that prompt and answer may have together; None: any number. tools: that it may call.

    Raises:
      ImageError: an image that is none, or ends beyond the context. ValueError: more or fewer marks than images, or an
        argument of another form.
    """
    _check_asked(conversation, files, tokenizer, vision, context, tools)
    names = [_name(file, number) for number, file in enumerate(files, start=1)]
    sizes = [open_image(file, name).size for file, name in zip(files, names, strict=True)]
    layouts = [layout_of(size, vision, name) for size, name in zip(sizes, names, strict=True)]
    tokens = [layout.num_tokens for layout in layouts]
    ids = render(conversation, tokenizer, tokens, tools=tools, generate=True).ids
    places = np.flatnonzero(ids == vision.image_token)
    for end, taken, name in zip(np.cumsum(tokens), tokens, names, strict=True):
        if context is not None and places[end - 1] + 1 >= context:
            raise ImageError(
                f"{name}: takes {taken:,} tokens and ends at token {places[end - 1] + 1:,} of its prompt; allowed: "
                f"before {context:,}, the context (train.sequence_length of the checkpoint's config)"
            )
    stop = tokenizer.special(END)
    if not files:
        return Asked(ids, stop=stop)
    return Asked(ids, text_table(ids == vision.image_token, layouts), tuple(files), stop)


def _check_asked(conversation, files, tokenizer, vision, context, tools) -> None:
    """ValueError where an argument of `ask` is of another form; before a file is opened."""
    check_messages(conversation)
    check_list("files", files)
    check_marks(conversation, len(files))  # first: a line may name a million files
    check_each("files", files)
    check_tokenizer(tokenizer, "a Tokenizer")
    check_kind("vision", vision, VisionConfig)
    if context is not None:
        check_count("context", context, 1, None)
    if not isinstance(tools, list | tuple):
        raise ValueError(f"tools: got {quoted(tools)}; allowed: a list of functions")


def show(asked: Asked, vision: VisionConfig) -> Shown | None:
    """The pixels of all images of a prompt; None of one without.

    Raises:
      ImageError: names the image that is none. ValueError: an argument of another kind.
    """
    check_kind("asked", asked, Asked)
    check_kind("vision", vision, VisionConfig)
    tiles = []
    for number, file in enumerate(asked.files, start=1):
        name = _name(file, number)
        tiles.append(normalise(make_tiles(decode(open_image(file, name), name), vision, name)))
    return Shown(np.concatenate(tiles), asked.index) if tiles else None


def num_tiles(asked: Asked, vision: VisionConfig) -> int:
    """Of all images of a prompt: the table's last patch is of the last tile."""
    check_kind("asked", asked, Asked)
    check_kind("vision", vision, VisionConfig)
    return 0 if asked.index is None else -(-int(asked.index.max()) // vision.num_patches)


def prompts(
    conversations: Sequence[Sequence[dict[str, Any]]],
    files: Sequence[Sequence[Source]],
    tokenizer: Tokenizer,
    vision: VisionConfig,
) -> tuple[list[np.ndarray], list[Shown | None]]:
    """Prompts that the assistant is to answer, and what each shows.

    Args:
      files: of each prompt, in the order of its marks; none of a prompt without.

    Raises:
      ImageError, ValueError: as of `ask`, with the number of the prompt; files of another form.
    """
    if not isinstance(conversations, list | tuple):
        raise ValueError(f"conversations: got {quoted(conversations)}; allowed: a list of conversations")
    check_form(files, len(conversations))
    with_files = [*zip(conversations, files, strict=True)]
    asked = [_of_prompt(n, ask, *one, tokenizer, vision) for n, one in enumerate(with_files)]
    return [one.ids for one in asked], [_of_prompt(n, show, one, vision) for n, one in enumerate(asked)]


def _of_prompt[T](number: int, function: Callable[..., T], *arguments: Any) -> T:
    """What a function makes of one of several prompts; what is wrong with it says of which."""
    try:
        return function(*arguments)
    except (ValueError, ImageError) as error:
        raise (ImageError if isinstance(error, ImageError) else ValueError)(f"prompts[{number}]: {error}") from None


def _name(file: Source, number: int) -> str:
    return shown(os.fspath(file)) if isinstance(file, str | os.PathLike) else f"image {number}"
