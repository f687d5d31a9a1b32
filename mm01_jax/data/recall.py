"""Documents that teach to find and to copy, as a source of data: `data.source='recall:SIZE'`, SIZE bytes each.

    two fifths   sentences of the library with names and numbers among them, each asked for at the end
    two fifths   lines of names with codes (UUIDs), some of which are said again
    the rest     a stretch of words, said twice

All have the same size, so rows of whole multiples cut none: one that is cut asks for what its row does not hold.
`recall:SIZE:twice` is of the last kind alone. A model begins with it: of the mixture alone a small one learnt nothing
in 800 steps (docs/evaluation.md).

A document follows from its number alone, so nothing of them is kept. What the evaluations say (`evals/needle.py`,
`evals/copies.py`) stands in none of the wordings here: whoever scores well there has learnt to find, not a wording.
"""

import bisect
import functools
import itertools
import random
import re
import uuid
from collections.abc import Iterator
from typing import NamedTuple

from mm01_jax.data import prose
from mm01_jax.data.text import DataError, Record, Seen, examine
from mm01_jax.files import shown

PREFIX = "recall:"
BYTES = 2**27  # of all documents together, at most
COUNT = 2**15  # of documents, at most
SIZES = (256, 2**24)  # of a document and its end, at least and at most
_UNITS = {"": 1, "k": 2**10, "m": 2**20}
_NEEDLES, _LINES = 0.4, 0.8  # of documents, up to which share each kind is; the rest says a stretch twice
_APART = 200  # bytes of haystack for each needle, at least
_MOST_NEEDLES = 64


class Wording(NamedTuple):
    """How a fact is said, and how it is asked for and answered."""

    said: str
    asked: str


WORDINGS = (
    Wording(" The number of {key} is {value}.", "\nWhat is the number of {key}? It is {value}."),
    Wording(" {key} has number {value}.", "\nNumber of {key}: {value}."),
    Wording(" Remember that {key} means {value}.", "\n{key} means {value}."),
    Wording(" A note says {value} for {key}.", "\nThe note for {key} says {value}."),
    Wording(" So {key} = {value} here.", "\n{key} = {value}."),
    Wording(" Somebody called {key} and heard {value}.", "\nWho called {key} heard {value}."),
)
LINES = (
    Wording("{key}: {value}\n", "again {key}: {value}\n"),
    Wording("Item {key}, code {value}.\n", "Item {key} had the code {value}.\n"),
    Wording("{value} belongs to {key}.\n", "To {key} belongs {value}.\n"),
)


def is_of_python(source: str) -> bool:
    """Whether a source's text follows from the version of Python."""
    return source == "stdlib" or source.startswith(PREFIX)


class RecallShard:
    """All documents of one size.

    Raises:
      ValueError: the source names no size.
    """

    reads_ranges = False

    def __init__(self, source: str):
        match = re.fullmatch(rf"{PREFIX}(\d{{1,8}})([km]?)(:twice)?", source)
        self.document_size = int(match[1]) * _UNITS[match[2]] if match else 0
        if not SIZES[0] <= self.document_size <= SIZES[1]:
            raise ValueError(
                f"data.source={shown(source)!r}: allowed: {PREFIX}SIZE, bytes of a document from {SIZES[0]} to "
                f"{SIZES[1]:,}, 1k = 1,024, or {PREFIX}SIZE:twice; nearest: {PREFIX}4k"
            )
        self._twice = bool(match[3])
        self.name, self.count = source, min(BYTES // self.document_size, COUNT)
        self.size = self.count * self.document_size

    def scan(self, seen: Seen) -> Iterator[Record]:
        for record, _ in self.documents(seen):
            yield record

    def documents(self, seen: Seen) -> Iterator[tuple[Record, bytes]]:
        for number in range(self.count):
            text = document(number, self.document_size, self._twice).encode()
            yield examine(number, f"{self.name} document {number}", [text], seen), text

    def read(self, key: int, start: int, stop: int, digest: bytes | None) -> bytes:
        text = document(key, self.document_size, self._twice).encode()
        if digest is not None and examine(key, self.name, [text]).digest != digest:
            raise DataError(f"{self.name} document {key}: another text than the run began with, of another Python")
        return text[start:stop]


def document(number: int, size: int, twice: bool = False) -> str:
    """The text of a document, `size` - 1 bytes: with its end a row holds a whole number of them, and none is cut.

    twice: it says a stretch twice, whatever its number.
    """
    draws = random.Random(number)
    kind = 1.0 if twice else draws.random()
    make = _needles if kind < _NEEDLES else _lines if kind < _LINES else _twice
    text = make(draws, size - 1)
    return _filler(draws, size - 1 - len(text.encode())) + text


def _filler(draws: random.Random, size: int) -> str:
    """The end of some text, so many bytes."""
    text = "".join(_haystack(draws, 2 * size + 2000)) + "\n"
    found = text.encode()[-size:].decode(errors="ignore") if size else ""
    return " " * (size - len(found.encode())) + found


def _needles(draws: random.Random, size: int) -> str:
    wording = draws.choice(WORDINGS)
    count = draws.randint(1, max(1, min(_MOST_NEEDLES, size // _APART)))
    facts = [(_name(draws), _number(draws)) for _ in range(count)]
    said = [wording.said.format(key=key, value=value) for key, value in facts]
    asked = "".join(wording.asked.format(key=key, value=value) for key, value in draws.sample(facts, count))
    texts = _haystack(draws, size - sum(map(len, said)) - len(asked))
    for text in said:
        texts.insert(draws.randint(0, len(texts)), text)
    return "".join(texts).lstrip() + asked


def _lines(draws: random.Random, size: int) -> str:
    wording, facts, left = draws.choice(LINES), [], size
    share = draws.uniform(0.1, 0.5)  # of lines that are said again
    again = 1.0 - share  # the first of them is
    while True:
        key, value = _name(draws), str(uuid.UUID(int=draws.getrandbits(128), version=4))
        fact = {"key": key, "value": value}
        again += share
        left -= len(wording.said.format(**fact)) + (len(wording.asked.format(**fact)) if again >= 1 else 0)
        if left < 0:
            break
        facts.append((fact, again >= 1))
        again -= again >= 1
    said = "".join(wording.said.format(**fact) for fact, _ in facts)
    told = [wording.asked.format(**fact) for fact, is_told in facts if is_told]
    return said + "".join(draws.sample(told, len(told)))


def _twice(draws: random.Random, size: int) -> str:
    words, left = [], size // 2 - 1
    while left > 0:
        words.append(draws.choice(prose.words()))
        left -= len(words[-1]) + 1
    text = " ".join(words[:-1])
    return f"{text}\n{text}"


def _haystack(draws: random.Random, size: int) -> list[str]:
    """Sentences that follow one another, from anywhere on, of at most so many bytes."""
    texts, ends = _sentences()
    first = draws.randrange(len(texts))
    last = bisect.bisect_right(ends, (ends[first - 1] if first else 0) + size)
    return list(texts[first:last])


@functools.cache
def _sentences() -> tuple[list[str], list[int]]:
    """(sentences with a blank before each, bytes up to the end of each)."""
    texts = [f" {sentence}" for sentence in prose.sentences()]
    return texts, list(itertools.accumulate(len(text.encode()) for text in texts))


def _name(draws: random.Random) -> str:
    return f"{draws.choice(prose.words())}-{draws.choice(prose.words())}"


def _number(draws: random.Random) -> str:
    return str(draws.randint(10**6, 10**7 - 1))
