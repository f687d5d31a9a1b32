"""RULER's word counts: the ten common words of a numbered list (`cwe`), the three commonest of a code (`fwe`)."""

import string
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mm01_jax.evals.pieces import filled
from mm01_jax.evals.ruler.search import SHORT, Asked, Drawn, Family, TooShort, fit, numbered, samples
from mm01_jax.evals.sample import Sample

COMMON = 10  # words that come often
_FIRST = 4096  # words of the first list that is counted
_ALPHA = 2.0  # how fast words of the code become rare: k^-alpha
_LETTERS = 6  # of a word of the code
_DOTS = "..."  # the code's commonest word, which is none


class Repeats(NamedTuple):
    """How often common and other words come, in the example of so many words and in the list."""

    words: int
    example: tuple[int, int]
    list: tuple[int, int]


LONG, SMALL = Repeats(40, (10, 3), (30, 3)), Repeats(20, (3, 1), (6, 1))


def common_words(asked: Asked, words: Sequence[str], more_words: Sequence[str]) -> Iterator[Sample]:
    """Samples of `cwe`.

    Args:
      words: of lists. more_words: of those that are longer than `words`.
    """
    repeats = SMALL if asked.length < SHORT else LONG
    chance = COMMON / len(words)
    family = Family("every", 120, 10, chance, _FIRST, most=lambda limit, per_word: int(limit // per_word) * 2)
    words = list(words)
    asked.draws.shuffle(words)
    maker = _Lists(asked, words, more_words, repeats)
    units = fit(asked, maker.draw, family, asked.limit, family.max_tokens)
    return samples(asked, lambda _, used: maker.draw(used), family, units)


class _Lists(NamedTuple):
    asked: Asked
    words: Sequence[str]
    more_words: Sequence[str]
    repeats: Repeats

    def draw(self, units: int) -> Drawn:
        said, fields = self.asked.strings.families["common_words_extraction"], {"num_cw": str(COMMON), "query": ""}
        before, after, prefix = (
            filled(said.before, **fields),
            filled(said.after, **fields),
            said.prefix.format(**fields),
        )
        example, found = self._list(self.repeats.words, *self.repeats.example)
        context, answers = self._list(units, *self.repeats.list)
        first = [*before, *example, *after, prefix, *(f" {number}. {word}" for number, word in enumerate(found, 1))]
        facts = {"units": units, "words": len(context) // 2, "common": self.repeats.list[0]}
        return Drawn([*first, "\n", *before, *context, *after], prefix, tuple(answers), facts)

    def _list(self, count: int, common: int, others: int) -> tuple[list[str], list[str]]:
        """(a numbered list in pieces, its common words)."""
        drawn = self.asked.draws.python.sample(self.words if count <= len(self.words) else self._more(count), count)
        listed = drawn[:COMMON] * common + drawn[COMMON:] * others
        self.asked.draws.shuffle(listed)
        numbers = ["1.", *(f" {number}." for number in range(2, len(listed) + 1))]
        return [piece for pair in zip(numbers, listed, strict=True) for piece in (pair[0], f" {pair[1]}")], drawn[
            :COMMON
        ]

    def _more(self, count: int) -> Sequence[str]:
        if count > len(self.more_words):
            raise ValueError(
                f"--templates: cwe at {self.asked.length:,} tokens draws from {count:,} words; allowed: an "
                f"english_words.json beside it that has them; this one has {len(self.more_words):,}"
            )
        return self.more_words


def frequent_words(asked: Asked) -> Iterator[Sample]:
    """Samples of `fwe`: how often a word comes falls with its rank as in Zeta's distribution."""
    max_tokens = 50
    limit = asked.limit - max_tokens
    maker = _Code(asked, limit // max_tokens)
    family = Family("every", max_tokens, max(1, limit // 32), 3 / 26**_LETTERS, first=1)
    if limit < 32 * _LETTERS:
        raise TooShort(f"fwe: got length {asked.length:,}; allowed: at least {asked.reserved + 32 * _LETTERS + 50:,}")
    words, units = maker.vocabulary(), limit // _LETTERS
    while asked.pieces.count(maker.draw(words, units).pieces) < limit:
        units += family.step
    units -= family.step
    for number in range(asked.count):
        used, words = units, maker.vocabulary()
        while asked.pieces.count((drawn := maker.draw(words, used)).pieces) > limit:
            used -= family.step
            if used <= 0:
                raise TooShort(f"fwe: got length {asked.length:,}; allowed: a longer one with this tokenizer")
        yield numbered(asked, family, number, asked.pieces.count(drawn.pieces) + max_tokens, drawn)


class _Code(NamedTuple):
    asked: Asked
    size: int

    def vocabulary(self) -> list[str]:
        """Words of the code by rank."""
        words = [self._word() for _ in range(self.size)]
        while len(set(words)) < self.size:
            words.append(self._word())
        words = sorted(set(words))
        self.asked.draws.shuffle(words)
        words[0] = _DOTS
        return words

    def _word(self) -> str:
        return "".join(self.asked.draws.python.choices(string.ascii_lowercase, k=_LETTERS))

    def draw(self, words: Sequence[str], units: int) -> Drawn:
        """A text of about so many words."""
        from scipy.special import zeta  # half a second, for this family alone

        ranks = np.arange(1, len(words) + 1)
        counts = (units * (ranks**-_ALPHA) / zeta(_ALPHA)).astype(int)
        listed = [word for word, count in zip(words, counts, strict=True) for _ in range(count)]
        self.asked.draws.shuffle(listed)
        said = self.asked.strings.families["freq_words_extraction"]
        fields = {"query": ""}
        context = [*listed[:1], *(f" {word}" for word in listed[1:])]
        facts = {"units": units, "words": len(listed), "counts": counts[1:4].tolist()}
        pieces = [*filled(said.before, **fields), *context, *filled(said.after, **fields)]
        return Drawn(pieces, said.prefix.format(**fields), tuple(words[1:4]), facts)
