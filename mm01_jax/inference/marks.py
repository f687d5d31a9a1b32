"""A prompt that speaks of pictures, `<image>`, and comes without them.

A model with vision has the mark for pictures alone, so a mark without one is refused: it would answer as if it had
seen one. To a model of text the mark in a text is text; a part of a message that is an image is none to any model.
"""

from collections.abc import Sequence
from typing import Any

from mm01_jax.config import VisionConfig
from mm01_jax.data.conversations import IMAGE
from mm01_jax.messages import counted


def check_text(name: str, text: str, vision: VisionConfig | None, nearest: str) -> None:
    """ValueError where a text that comes without pictures has a place for one, to a model that sees."""
    if vision is not None and (marks := text.count(IMAGE)):
        _refuse(f"{name}: got {counted(marks, f'{IMAGE} mark')} and no picture", nearest)


def check_conversation(messages: Sequence[dict[str, Any]], vision: VisionConfig | None, nearest: str) -> None:
    """The same of every message's text; and of any model, where a part of a message is an image."""
    for number, message in enumerate(messages):
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        for part in (part for part in parts if isinstance(part, dict)):
            if part.get("type") == "image" and vision is None:
                got = f"messages[{number}]: got a part that is an image"
                raise ValueError(f'{got}; allowed: text of a model without vision; nearest: {{"type": "text", ...}}')
            if part.get("type") == "image":
                _refuse(f"messages[{number}]: got a part that is an image and no picture", nearest)
            if isinstance(text := part.get("text"), str):
                check_text(f"messages[{number}]", text, vision, nearest)


def _refuse(what: str, nearest: str) -> None:
    raise ValueError(f"{what}; allowed: as many pictures as {IMAGE} marks; nearest: {nearest}")
