"""From token ids to text as they come: whole characters only, up to where a text ends.

A text ends before a stop id or a stop string. Of a stop string the first end counts, and of those that end there the
longest, so that the text is the same however tokens cut it; what may yet become one is held back.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mm01_jax.data.tokenizer import Tokenizer

_UNFINISHED = "\ufffd"  # what a decoder shows of half a character
_CONTEXT = 8  # ids of the prompt that are decoded with the first that are new


class Stops(NamedTuple):
    """What ends a text, and is no part of it."""

    ids: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()


def stops(value: str | int | Sequence[str | int] | None) -> Stops:
    """Stops of what a person gave: texts, ids, or a list of them.

    Raises:
      ValueError: anything else, an empty text, a negative id.
    """
    given = [value] if isinstance(value, str | int) else [] if value is None else value
    if not isinstance(given, list | tuple | set | frozenset):
        raise ValueError(f"stop: got {value!r}; allowed: a text, an id, or a list of texts and ids")
    for item in given:
        fits = (
            item != "" if isinstance(item, str) else isinstance(item, int) and not isinstance(item, bool) and item >= 0
        )
        if not fits:
            raise ValueError(f"stop: got {item!r}; allowed: a text that is not empty, or an id from 0 on")
    return Stops(
        frozenset(item for item in given if isinstance(item, int)),
        tuple(item for item in given if isinstance(item, str)),
    )


class TextStream:
    """The text of one answer as its ids come.

    finish: "stop" once the text has ended. count: ids that were taken in, that of a stop aside.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Stops, prompt: Sequence[int] = ()):
        self.finish: str | None = None
        self.count = 0
        self._tokenizer, self._stop = tokenizer, stop
        # A decoder may treat the first token otherwise than the same token later: some before it are decoded again.
        self._context = [int(token) for token in prompt[-_CONTEXT:]]
        self._fresh: list[int] = []
        self._context_length, self._shown = len(tokenizer.decode(self._context)) if self._context else 0, 0
        self._held = ""

    def take(self, ids: Iterable[int]) -> str:
        """The text that is certain after these ids; ids after the end are not looked at."""
        pieces = []
        for token in ids:
            if self.finish is not None:
                break
            if token in self._stop.ids:
                pieces.append(self.end())
                self.finish = "stop"
            else:
                self.count += 1
                pieces.append(self._pass_on(self._decode(int(token))))
        return "".join(pieces)

    def end(self) -> str:
        """The rest, when no id comes any more: half a character as decoders show it, and what was held back."""
        if self.finish is not None:
            return ""
        rest = self._pass_on(self._tokenizer.decode(self._context + self._fresh)[self._context_length + self._shown :])
        self._fresh, self._shown = [], 0
        if self.finish is None:
            rest, self._held = rest + self._held, ""
        return rest

    def _decode(self, token: int) -> str:
        """What one more token adds to the certain characters."""
        self._fresh.append(token)
        text = self._tokenizer.decode(self._context + self._fresh)[self._context_length :]
        certain = text.rstrip(_UNFINISHED)
        piece, self._shown = certain[self._shown :], len(certain)
        if certain == text:
            self._context, self._fresh, self._shown = self._fresh, [], 0
            self._context_length = len(self._tokenizer.decode(self._context))
        return piece

    def _pass_on(self, piece: str) -> str:
        """The text before a stop string, without what may become one."""
        text, self._held = self._held + piece, ""
        found = [
            (text.find(string) + len(string), text.find(string)) for string in self._stop.strings if string in text
        ]
        if found:
            self.finish = "stop"
            return text[: min(found)[1]]
        held = max((overlap(text, string) for string in self._stop.strings), default=0)
        certain = len(text) - held
        self._held = text[certain:]
        return text[:certain]


def overlap(text: str, string: str) -> int:
    """Characters at the end of `text` that `string` begins with, all of it aside."""
    return next((n for n in range(min(len(text), len(string) - 1), 0, -1) if text.endswith(string[:n])), 0)
