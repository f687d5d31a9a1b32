"""Texts in pieces, each tokenised once.

A haystack says the same sentences in every sample, so their tokens are counted once and added up; a needle between two
sentences changes no token of either, and what two prompts share is the same tokens in both. Pieces begin with the
blank before them, where tokenizers that look at words cut as well.
"""

import functools
import string
from collections.abc import Iterable, Iterator

import numpy as np

from mm01_jax.data.tokenizer import Tokenizer

MOST = 200_000  # pieces that are remembered


class Pieces:
    """Tokens of texts in pieces.

    Args:
      whole: a text is tokenised as one, as suites count that know of no pieces.
    """

    def __init__(self, tokenizer: Tokenizer, *, whole: bool = False):
        self.tokenizer, self.whole = tokenizer, whole
        self._known: dict[str, np.ndarray] = {}

    def ids(self, pieces: Iterable[str]) -> np.ndarray:
        """int32 ids of a text."""
        if self.whole:
            return self.tokenizer.encode("".join(pieces))
        return np.concatenate([np.zeros(0, np.int32), *map(self._encoded, pieces)])

    def count(self, pieces: Iterable[str]) -> int:
        """How many tokens a text has."""
        if self.whole:
            return len(self.tokenizer.encode("".join(pieces)))
        return sum(len(self._encoded(piece)) for piece in pieces)

    def _encoded(self, piece: str) -> np.ndarray:
        found = self._known.get(piece)
        if found is None:
            if len(self._known) >= MOST:
                self._known.clear()
            found = self._known[piece] = self.tokenizer.encode(piece)
        return found


def joined(texts: Iterable[Iterable[str]], blank: str) -> Iterator[str]:
    """The pieces of several texts with a blank in front of each but the first."""
    for number, pieces in enumerate(texts):
        first, *rest = pieces
        yield blank + first if number else first
        yield from rest


def filled(pattern: str, **values: str) -> list[str]:
    """The pieces of `pattern.format(**values)`: what stands in it, and each value with the blank before it."""
    return [fixed if name is None else fixed + values[name] for fixed, name in _parsed(pattern)]


@functools.cache
def _parsed(pattern: str) -> tuple[tuple[str, str | None], ...]:
    """(a text, None) or (the blank before a value, its name), in order; no text is empty."""
    found, blank = [], ""
    for literal, name, _, _ in string.Formatter().parse(pattern):
        fixed = blank + literal
        blank = ""
        if name is not None and fixed.endswith(" "):
            fixed, blank = fixed[:-1], " "
        found += [(fixed, None)] if fixed else []
        if name is not None:
            found.append((blank, name))
            blank = ""
    return tuple(found)
