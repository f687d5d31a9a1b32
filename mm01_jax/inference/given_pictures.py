"""`images=` of `generate`: a list of pictures for each prompt. What is none is refused by its place."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mm01_jax.data.images.opening import Source
from mm01_jax.files import quoted, shown
from mm01_jax.messages import counted


def check_form(files: Any, num_prompts: int) -> None:
    """ValueError where these are not a list of pictures for each prompt; says the nearest that is."""

    def refuse(name: str, got: str, allowed: str, nearest: str):
        raise ValueError(f"{name}: got {got}; allowed: {allowed}; nearest: {nearest}")

    each = "a list for each prompt, of its pictures"
    if isinstance(files, Source):
        refuse("images", _form(files), each, f"images=[[{_written(files)}]]")
    if not isinstance(files, list | tuple):
        refuse("images", _form(files), each, 'images=[["a.png"]]')
    for number, some in enumerate(files):
        name = f"images[{number}]"
        if isinstance(some, Source):
            refuse(name, _form(some), each, f"images={_in_lists(files, num_prompts)}")
        check_list(name, some)
        check_each(name, some)
    if len(files) != num_prompts:
        got, wanted = counted(len(files), "list"), counted(num_prompts, "prompt")
        refuse("images", f"{got} for {wanted}", "a list for each prompt", "[] for a prompt without a picture")


def check_list(name: str, some: Any) -> None:
    """ValueError where it is no list."""
    if not isinstance(some, list | tuple):
        nearest = f"[{_written(some)}]" if isinstance(some, Source) else '["a.png"]'
        allowed = "a list of the pictures of a prompt, [] where it has none"
        raise ValueError(f"{name}: got {_form(some)}; allowed: {allowed}; nearest: {nearest}")


def check_each(name: str, some: Sequence[Any]) -> None:
    """ValueError where one of a list is no picture."""
    for place, file in enumerate(some):
        if not isinstance(file, Source) or not file:
            allowed = "the path of a picture, the bytes of its file, or a PIL.Image.Image"
            raise ValueError(f"{name}[{place}]: got {_form(file)}; allowed: {allowed}; nearest: {_picture_of(file)}")


def _picture_of(value: Any) -> str:
    """How a picture is had of what was got."""
    if isinstance(value, np.ndarray):
        return "PIL.Image.fromarray(array)"
    if isinstance(value, bytearray | memoryview):
        return "bytes(...)"
    return "file.read()" if hasattr(value, "read") else '"a.png"'


def _form(value: Any) -> str:
    """What was got, in a few words."""
    if value is None or isinstance(value, str | int | float):
        return quoted(value)
    if isinstance(value, bytes) and not value:
        return "0 bytes"
    return f"a {type(value).__name__}"


def _written(file: Any) -> str:
    """A picture as a person would write it."""
    return f'"{shown(os.fspath(file))}"' if isinstance(file, str | os.PathLike) else "picture"


def _in_lists(files: Sequence[Any], num_prompts: int) -> str:
    """Files without lists as they may have been meant: one of each prompt, or all of the one prompt."""
    some = [_written(file) for file in files[:2]]
    more = [", ..."] if len(files) > 2 else []
    if num_prompts == 1:
        return f"[[{', '.join(some)}{''.join(more)}]]"
    return f"[{', '.join(f'[{one}]' for one in some)}{''.join(more)}]"
