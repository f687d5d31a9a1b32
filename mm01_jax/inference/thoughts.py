"""What a model thinks before it answers, apart from the answer: <think>, thoughts, </think>, the answer (MiniMax-M1).

The marks are text of the answer, wherever tokens or pieces of a stream cut them. Line breaks next to them are the
form's and belong to neither side. An answer that does not begin with <think> is all answer.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.inference.engine_request import check_count
from mm01_jax.inference.engine_sizes import check_tokenizer
from mm01_jax.inference.stops import overlap

OPEN, CLOSE = "<think>", "</think>"
CLOSING = f"\n{CLOSE}\n\n"  # what a budget makes of the end of thoughts
_ANY = 2**30  # tokens


class Said(NamedTuple):
    """Both sides of a text, or of a piece of it."""

    thinking: str
    text: str


class Thoughts:
    """Takes a text apart as it comes: what is said is never taken back. begun: the prompt ends with <think>."""

    def __init__(self, begun: bool = False):
        self._held, self._take = "", self._skip_to(self._think) if begun else self._begin

    def take(self, piece: str) -> Said:
        """What is certain after one more piece."""
        text, self._held = self._held + piece, ""
        return self._take(text)

    def end(self) -> Said:
        """What was held back, when nothing comes any more; thoughts that were cut off stay thoughts."""
        held, self._held = self._held, ""
        return Said(held.rstrip("\n"), "") if self._take == self._think else Said("", held)

    def _begin(self, text: str) -> Said:
        word = text.lstrip()
        if word.startswith(OPEN):
            self._take = self._skip_to(self._think)
            return self._take(word[len(OPEN) :])
        if OPEN.startswith(word):
            self._held = text
            return Said("", "")
        self._take = self._answer
        return Said("", text)

    def _skip_to(self, side):
        """Leaves out line breaks before a side begins."""

        def skip(text: str) -> Said:
            text = text.lstrip("\n")
            if not text:
                return Said("", "")
            self._take = side
            return side(text)

        return skip

    def _think(self, text: str) -> Said:
        before, mark, after = text.partition(CLOSE)
        if mark:
            self._take = self._skip_to(self._answer)
            said = self._take(after)
            return Said(before.rstrip("\n"), said.text)
        certain = before[: len(before) - overlap(before, CLOSE)].rstrip("\n")
        self._held = before[len(certain) :]
        return Said(certain, "")

    def _answer(self, text: str) -> Said:
        return Said("", text)


def split(text: str) -> Said:
    """Both sides of a whole text."""
    thoughts = Thoughts()
    return Said(*map("".join, zip(thoughts.take(text), thoughts.end(), strict=True)))


def streamed(pieces: Iterable[str]) -> Iterator[Said]:
    """Both sides of a text in pieces, as they become certain."""
    thoughts = Thoughts()
    for piece in pieces:
        if any(said := thoughts.take(piece)):
            yield said
    if any(said := thoughts.end()):
        yield said


class Budget:
    """A hook (`masks.py`) that ends thoughts of `most` tokens: what may come then is the closing mark alone."""

    def __init__(self, tokenizer: Tokenizer, most: int):
        check_tokenizer(tokenizer, "a Tokenizer")
        check_count("most", most, 1, None)
        self._tokenizer, self._most, self._closing = tokenizer, most, _closing(tokenizer)

    def __call__(self, tokens: Sequence[int]) -> int | list[int]:
        over = len(tokens) - self._most
        if over < 0:
            return -over
        if over >= len(self._closing) or not self._thinks(tokens[: self._most]):
            return _ANY
        return [self._closing[over]]

    def _thinks(self, tokens: Sequence[int]) -> bool:
        text = self._tokenizer.decode(list(tokens))
        return text.lstrip().startswith(OPEN) and CLOSE not in text


def _closing(tokenizer: Tokenizer) -> list[int]:
    """The ids of the closing mark: the special token of its name where the tokenizer has one."""
    if CLOSE not in tokenizer.specials:
        return [int(token) for token in tokenizer.encode(CLOSING)]
    before, after = (tokenizer.encode(part) for part in CLOSING.split(CLOSE))
    return [*map(int, before), tokenizer.special(CLOSE), *map(int, after)]
