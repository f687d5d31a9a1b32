"""A file of prompts, one JSON object a line, and the file of what the model says to each.

A line has `prompt`, a text to go on from, or `messages`, a conversation to answer; what else it has is kept, but a key
that is nearly one of `KEYS` is refused. With `images`, paths from the folder of the file, which they may not leave, it
asks about them: a `prompt` is then what a user says. A line may have `options` (`batch.OPTIONS`). A line of the result
is the same with `text` and `finish` (as in `asked.Answer`), in the same order, and of a conversation with a model that
thinks first `thinking`; of several answers each has a line, with its `sample` (`answer_file.py`).
"""

import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from mm01_jax.config.fields import nearest_name
from mm01_jax.data.json_lines import json_value, lines, whole_line
from mm01_jax.data.text import BadFile, DataError
from mm01_jax.data.tokenizer import check_utf8
from mm01_jax.files import Door, quoted
from mm01_jax.inference.answer_file import RESULT
from mm01_jax.progress import Progress

KEYS = ("prompt", "messages", "images", "tools", "options")
_SLIP = 0.85  # how like one of them a key is that is taken for it: `option` and `promt` are, `prompt_id` is another


def read(path: str) -> list[dict[str, Any]]:
    """Every line of a file.

    Raises:
      BadFile: names the first line that is wrong. DataError: names the first whose picture is.
    """
    with Door(ValueError).open(path) as file:
        found = [at_line(path, number, _read_line, line) for number, _, line in lines(file)]
    if not found:
        raise BadFile(f"{path}: no line; allowed: one JSON object a line")
    if any(fields.get("images") for fields in found):
        of_lines(path, functools.partial(_check_images, folder=pathlib.Path(path).parent), found, "lines looked at")
    return found


def of_lines[T](
    path: str, function: Callable[[dict[str, Any]], T], lines: Sequence[dict], did: str, *, says: bool = True
) -> list[T]:
    """What the function makes of each line; `says` on stderr how far it is where that takes long."""
    found, began, progress = [], time.monotonic(), None
    for number, fields in enumerate(lines, start=1):
        found.append(at_line(path, number, function, fields))
        if progress is not None:
            progress.show(number, did)
        elif says and time.monotonic() - began > Progress.SECONDS:
            progress = Progress(number, len(lines), sys.stderr)
    if progress is not None:
        progress.end()
    return found


def at_line[T](path: str, number: int, function: Callable[..., T], *arguments: Any) -> T:
    """What the function makes of the line; what is wrong with it, or with its pictures, says where it stands."""
    try:
        return function(*arguments)
    except (ValueError, DataError) as error:
        raise (BadFile if isinstance(error, ValueError) else DataError)(f"{path} line {number}: {error}") from None


def _read_line(line: bytes) -> dict[str, Any]:
    try:
        fields = json_value(whole_line(line))
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise ValueError(f"got a JSON {type(fields).__name__}; allowed: an object")
    check_utf8("its text", json.dumps(fields, ensure_ascii=False))  # the line of its answer would have no form
    for name in fields:
        if name not in KEYS and (meant := nearest_name(name, KEYS, _SLIP)):
            allowed = f"{', '.join(KEYS)}, and keys unlike them"
            raise ValueError(f"got the key {quoted(name)}; allowed: {allowed}; nearest: {meant}")
    asked = [name for name in ("prompt", "messages") if name in fields]
    if len(asked) != 1:
        raise ValueError(f"got {' and '.join(asked) or 'neither'}; allowed: either 'prompt' or 'messages'")
    if taken := [name for name in RESULT if name in fields]:
        raise ValueError(f"has {taken[0]!r} already, which the result is to have")
    if "prompt" in fields and not (isinstance(fields["prompt"], str) and fields["prompt"]):
        raise ValueError(f"prompt: got {quoted(fields['prompt'])}; allowed: a text that is not empty")
    if "messages" in fields:
        _check_messages(fields["messages"])
    tools, images = fields.get("tools"), fields.get("images", [])
    if tools and "prompt" in fields and not images:
        raise ValueError("tools: allowed of a conversation, which `messages` has, or with `images`")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ValueError(f"tools: got {quoted(tools)}; allowed: a list of functions, each an object of JSON")
    if not (isinstance(images, list) and all(isinstance(image, str) and image for image in images)):
        raise ValueError(f'images: got {quoted(images)}; allowed: a list of paths; nearest: "images": ["a.png"]')
    return fields


def _check_images(fields: dict[str, Any], folder: pathlib.Path) -> None:
    from mm01_jax.inference import pictures  # needs pillow, which text alone does not

    images = dict.fromkeys(fields.get("images", []))  # each once, however often a line names it
    pictures.check_sound([folder / image for image in images], folder)


def _check_messages(messages: Any) -> None:
    """Their form; which roles there are, the template says."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"messages: got {quoted(messages)}; allowed: a list of at least one message")
    for number, message in enumerate(messages):
        if not (isinstance(message, dict) and isinstance(message.get("role"), str) and "content" in message):
            raise ValueError(f'messages[{number}]: got {quoted(message)}; allowed: {{"role": TEXT, "content": TEXT}}')
