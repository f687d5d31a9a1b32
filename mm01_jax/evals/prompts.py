"""From samples to token ids: as text that goes on, or as a conversation in the official template.

    base    BOS text prefix                         of several turns each begins "User: " or "Assistant: "
    chat    <begin> user header, text, <end> ... <begin> assistant header, prefix

The answer's beginning (prefix) comes where the answer stands, never inside what the user says. What a tokenizer's own
file would add is never added; `bos` names the one token that a base prompt begins with, by default none, as training
has it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mm01_jax.data.conversations import BEGIN, END, HEADERS
from mm01_jax.evals.pieces import Pieces
from mm01_jax.evals.sample import USER, Sample, Turn

_SIDES = {"user": "User:", "assistant": "Assistant:", "system": "System:"}


class Prompts(NamedTuple):
    """How samples are said. template: of `flags.TEMPLATES`. bos: the name of a special token; of base prompts
    alone."""

    pieces: Pieces
    template: str = "base"
    bos: str | None = None

    def ids(self, sample: Sample) -> np.ndarray:
        """int32 ids of a sample's prompt."""
        if self.template == "chat":
            return self._joined(*map(self._closed, sample.turns), self._opened("assistant"), (sample.prefix,))
        if len(sample.turns) == 1:
            return self._joined(self._bos, self._said(sample.turns[0]), (sample.prefix,))
        return self._joined(self._bos, *map(self._line, sample.turns), (_SIDES["assistant"], sample.prefix))

    def begun(self, turns: Sequence[Turn]) -> np.ndarray:
        """The beginning that all prompts share whose turns begin with these, the last of which goes on."""
        if self.template == "chat":
            *before, last = turns
            return self._joined(*map(self._closed, before), self._opened(last.role), last.pieces)
        if len(turns) == 1:
            return self._joined(self._bos, turns[0].pieces)
        return self._joined(self._bos, *map(self._line, turns[:-1]), self._line(turns[-1])[:-1])

    @property
    def reserved(self) -> int:
        """Tokens of a prompt of one turn besides those of its text."""
        empty = Turn(USER, ())
        around = [self._closed(empty), self._opened("assistant")] if self.template == "chat" else [self._bos]
        return sum(len(self._ids(part)) for part in around)

    def per_turn(self, role: str) -> int:
        """Tokens of a turn among several besides those of its text."""
        empty = Turn(role, ())
        return len(self._ids(self._closed(empty) if self.template == "chat" else self._line(empty)))

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        words = self.pieces.tokenizer
        return tuple(sorted({words.end_of_document, *([words.special(END)] if self.template == "chat" else [])}))

    @property
    def _bos(self) -> tuple[int, ...]:
        return () if self.bos is None else (self.pieces.tokenizer.special(self.bos),)

    # A part is pieces of text, with ids among them for what no text has.

    def _said(self, turn: Turn) -> tuple[str | int, ...]:
        return turn.pieces

    def _line(self, turn: Turn) -> tuple[str | int, ...]:
        return (_SIDES[turn.role], " ", *turn.pieces, "\n\n")

    def _opened(self, role: str) -> tuple[str | int, ...]:
        return (self.pieces.tokenizer.special(BEGIN), HEADERS[role])

    def _closed(self, turn: Turn) -> tuple[str | int, ...]:
        return (*self._opened(turn.role), *turn.pieces, self.pieces.tokenizer.special(END), "\n")

    def _joined(self, *parts: Sequence[str | int]) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.int32), *map(self._ids, parts)])

    def _ids(self, part: Sequence[str | int]) -> np.ndarray:
        found, texts = [np.zeros(0, np.int32)], []
        for piece in part:
            if isinstance(piece, str):
                texts.append(piece)
                continue
            found += [self.pieces.ids(texts), np.array([piece], np.int32)]
            texts = []
        return np.concatenate([*found, self.pieces.ids(texts)])
