"""Documents that teach to find and to copy, as a source of data: `data.source='recall:SIZE'`, SIZE bytes each.

    nine of ten     facts, a name and a value each, among the library's sentences or one after another; the end asks
                    for them
    one of ten      a stretch of words, said twice

`recall:SIZE:twice` is of the last kind alone. A model begins with it: all of its second stretch is learnt by looking
back, and a small one that does so learns facts in half the steps that the mixture takes it alone (docs/evaluation.md).
`recall:SIZE:codes` has UUIDs among the values more often.

Answers alone are learnt: the values that are asked for, and the second stretch. Filler is most of a document and says
nothing of finding; with a loss on all of it a small model learnt no fact in 800 steps (docs/evaluation.md).

Every document has a wording of its own, of words drawn at random, and now and then asks in other words than it told. So
what the evaluations say (`evals/needle.py`, `evals/copies.py`) is a wording like any other, and whoever scores well
there has learnt to find. With six fixed wordings a model learnt those: 0 of 48 needles in another one.

All have the same size, so rows of whole multiples cut none: one that is cut asks for what its row does not hold. A
document follows from its number alone, so nothing of them is kept.
"""

import bisect
import functools
import itertools
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from mm01_jax.data import prose
from mm01_jax.data.text import PROGRESS_SECONDS, DataError, Record, Seen, examine
from mm01_jax.data.tokenized import TokenizedDocuments
from mm01_jax.files import shown

PREFIX = "recall:"
BYTES = 2**25  # of all documents together, at most
COUNT = 2**15  # of documents, at most
SIZES = (256, 2**24)  # of a document and its end, at least and at most
_UNITS = {"": 1, "k": 2**10, "m": 2**20}
_TWICE = 0.1  # of documents
_CODES = {"": 0.25, "codes": 0.4}  # of those with facts: their values are UUIDs
_IN_A_ROW = 0.3  # of those with facts: no sentence is among them
_SAME_WORDS = 0.7  # ask as they told
_MOST_FACTS = 512
_SMALL = ("the", "a", "of", "is", "has", "in", "for", "to", "and", "that", "my", "was", "with", "its")


class Piece(NamedTuple):
    """A part of a document, and whether it is learnt."""

    text: str
    learnt: bool


class Wording(NamedTuple):
    """How a fact is said, and how it is asked for and answered: patterns of {key} and {value}."""

    said: str
    asked: str


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
        match = re.fullmatch(rf"{PREFIX}(\d{{1,8}})([km]?)(?::(twice|codes))?", source)
        self.document_size = int(match[1]) * _UNITS[match[2]] if match else 0
        if not SIZES[0] <= self.document_size <= SIZES[1]:
            raise ValueError(
                f"data.source={shown(source)!r}: allowed: {PREFIX}SIZE, bytes of a document from {SIZES[0]} to "
                f"{SIZES[1]:,}, 1k = 1,024, or {PREFIX}SIZE:twice, {PREFIX}SIZE:codes; nearest: {PREFIX}4k"
            )
        self._kind = match[3] or ""
        self.name, self.count = source, min(BYTES // self.document_size, COUNT)
        self.size = self.count * self.document_size

    def scan(self, seen: Seen) -> Iterator[Record]:
        for record, _ in self.documents(seen):
            yield record

    def documents(self, seen: Seen) -> Iterator[tuple[Record, bytes]]:
        for number in range(self.count):
            text = self._text(number)
            yield examine(number, f"{self.name} document {number}", [text], seen), text

    def read(self, key: int, start: int, stop: int, digest: bytes | None) -> bytes:
        text = self._text(key)
        if digest is not None and examine(key, self.name, [text]).digest != digest:
            raise DataError(f"{self.name} document {key}: another text than the run began with, of another Python")
        return text[start:stop]

    def pieces(self, key: int) -> list[Piece]:
        """A document in its pieces."""
        return pieces_of(key, self.document_size, self._kind)

    def _text(self, key: int) -> bytes:
        return "".join(text for text, _ in self.pieces(key)).encode()


class RecallDocuments(TokenizedDocuments):
    """`packing.TokenDocuments` that say what is learnt; each piece is tokenised by itself."""

    def __init__(self, *args):
        super().__init__(*args)
        self._made = functools.lru_cache(maxsize=16)(self._make)

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        return self._made(document)[0][start:stop]

    def learnt(self, document: int, start: int, stop: int) -> np.ndarray:
        """bool, which of its tokens [start, stop) are learnt; at their number stands the end of the document."""
        return self._made(document)[1][start:stop]

    def _count(self, log: Callable[[str], None]) -> np.ndarray:
        counts_D, clock = np.zeros(len(self._chosen_D), np.int64), time.monotonic()
        for document in range(len(counts_D)):
            counts_D[document] = len(self._made(document)[0])
            if time.monotonic() - clock > PROGRESS_SECONDS:
                clock = time.monotonic()
                log(f"data: counted the tokens of {document + 1:,} of {len(counts_D):,} documents")
        return counts_D

    def _make(self, document: int) -> tuple[np.ndarray, np.ndarray]:
        source = int(self._chosen_D[document])
        shard = self._corpus.shards[self._corpus.shard_D[source]]
        pieces = shard.pieces(int(self._corpus.key_D[source]))
        ids = [self._tokenizer.encode(text) for text, _ in pieces]
        learnt = [np.full(len(one), piece.learnt) for one, piece in zip(ids, pieces, strict=True)]
        return self._checked(document, np.concatenate(ids)), np.append(np.concatenate(learnt), pieces[-1].learnt)


def pieces_of(number: int, size: int, kind: str = "") -> list[Piece]:
    """A document of `size` - 1 bytes: with its end a row holds a whole number of them, and none is cut.

    kind: "twice": it says a stretch twice, whatever its number; "codes": its facts' values are UUIDs more often.
    """
    draws = random.Random(number)
    if kind == "twice" or draws.random() < _TWICE:
        pieces = _twice(draws, size - 1)
    else:
        pieces = _facts(draws, size - 1, _CODES[kind])
    left = size - 1 - sum(len(text.encode()) for text, _ in pieces)
    return [Piece(_filler(draws, left), False), *pieces] if left else pieces


def _filler(draws: random.Random, size: int) -> str:
    """The end of some text, so many bytes."""
    text = "".join(_haystack(draws, 2 * size + 2000)) + "\n"
    found = text.encode()[-size:].decode(errors="ignore")
    return " " * (size - len(found.encode())) + found


def _twice(draws: random.Random, size: int) -> list[Piece]:
    words, left = [], size // 2 - 1
    while left > 0:
        words.append(draws.choice(prose.words()))
        left -= len(words[-1]) + 1
    text = " ".join(words[:-1])
    return [Piece(f"{text}\n", False), Piece(text, True)]


def _facts(draws: random.Random, size: int, codes: float) -> list[Piece]:
    while not (facts := _fitting(draws, size, codes)):  # long words
        pass
    facts = facts[: round(len(facts) ** draws.random())]  # as often a few as most of those that fit
    said = [text for text, _ in facts]
    asked = list(itertools.chain(*(pieces for _, pieces in draws.sample(facts, len(facts)))))
    if draws.random() >= _IN_A_ROW:
        texts = _haystack(draws, size - sum(map(len, said)) - sum(len(piece.text) for piece in asked))
        for text in said:
            texts.insert(draws.randint(0, len(texts)), text)
        said = texts
    return [Piece("".join(said), False), *asked]


def _fitting(draws: random.Random, size: int, codes: float) -> list[tuple[str, tuple[Piece, Piece]]]:
    """(how it is said, how it is asked for and answered) of facts in one wording, as many as fit."""
    wording, make, names, found = _wording(draws), _uuid if draws.random() < codes else _short, set(), []
    while len(found) < _MOST_FACTS:
        key, value = _name(draws), make(draws)
        said, asked = wording.said.format(key=key, value=value), _asked(wording, key, value)
        size -= len(said) + sum(len(piece.text) for piece in asked)
        if size < 0:
            break
        if key not in names:
            names.add(key)
            found.append((said, asked))
    return found


def _asked(wording: Wording, key: str, value: str) -> tuple[Piece, Piece]:
    question, end = wording.asked.format(key=key, value="\0").split("\0")
    return Piece(question[:-1], False), Piece(f" {value}{end}", True)


def _wording(draws: random.Random) -> Wording:
    end = draws.choice((".", ";", "!", ",", " here.", ".\n", "\n"))
    said = _statement(draws)
    again = said if draws.random() < _SAME_WORDS else _statement(draws)
    question = f"{_phrase(draws, 1, 4).capitalize()} {{key}}?" if draws.random() < 0.5 else ""
    return Wording(f"{said}{end}", f"\n{question}{again}{end}")


def _statement(draws: random.Random) -> str:
    before, between = _phrase(draws, 0, 3).capitalize(), _phrase(draws, 0, 2)
    between = f" {between}" if between else draws.choice((":", " =", " is", ","))
    return f" {before}{' ' if before else ''}{{key}}{between} {{value}}"


def _phrase(draws: random.Random, least: int, most: int) -> str:
    """So many words, of the library's or small ones."""
    count = draws.randint(least, most)
    return " ".join(draws.choice(prose.words() if draws.random() < 0.6 else _SMALL) for _ in range(count))


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


def _uuid(draws: random.Random) -> str:
    return str(uuid.UUID(int=draws.getrandbits(128), version=4))


def _short(draws: random.Random) -> str:
    """A number of seven digits, or another number, a word, some letters and digits."""
    kind = draws.random()
    if kind < 0.6:
        return str(draws.randint(10**6, 10**7 - 1))
    if kind < 0.8:
        return str(draws.randint(10, 10**9))
    return draws.choice(prose.words()) if kind < 0.9 else f"{draws.getrandbits(40):010x}"
