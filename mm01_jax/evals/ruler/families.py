"""RULER's thirteen families by name, and what their words are drawn from.

Numbers of needles, distractors, hops and words, tokens of answers and scorers are RULER's as published (Hsieh et al.,
2024, and its generators at c3f5e3b). Real text stands where RULER downloads essays, and documents of the standard
library where it downloads SQuAD and HotpotQA.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mm01_jax.data import prose
from mm01_jax.evals.pieces import Pieces
from mm01_jax.evals.ruler import needles, questions, tracking, words
from mm01_jax.evals.ruler.names import SEED
from mm01_jax.evals.ruler.pairs import Pairs
from mm01_jax.evals.ruler.search import Asked, Draws
from mm01_jax.evals.ruler.strings import OWN, Strings
from mm01_jax.evals.sample import Sample


class Words(NamedTuple):
    """keys: of needles. listed: of word lists; more: of those that are longer."""

    keys: Sequence[str]
    listed: Sequence[str]
    more: Sequence[str]


@functools.cache
def own_words() -> Words:
    """Of the library's descriptions."""
    found = prose.words()
    pairs = Pairs(found[::2], found[1::2])
    return Words(pairs, found, pairs)


@functools.cache
def published_words(more: tuple[str, ...]) -> Words:
    """Of wonderwords, as RULER takes them."""
    try:
        from wonderwords import random_word
    except ImportError:
        raise ValueError("--templates needs the words of RULER: pip install 'mm01_jax[ruler]'") from None
    nouns, adjectives, verbs = (
        random_word._get_words_from_text_file(f"{kind}list.txt") for kind in ("noun", "adjective", "verb")
    )
    return Words(Pairs(adjectives, nouns), sorted({*nouns, *adjectives, *verbs}), more)


def samples(
    task: str,
    length: int,
    count: int,
    pieces: Pieces,
    *,
    strings: Strings = OWN,
    seed: int = SEED,
    reserved: int = 0,
    given: Words | None = None,
) -> Iterator[Sample]:
    """`count` samples of one of `names.FAMILIES`.

    Args:
      length: tokens of prompt and answer together, at most. reserved: of them the template's around the prompt.
      given: words to draw from; None: RULER's of published strings, else our own.

    Raises:
      search.TooShort: a length that no sample fits.
    """
    asked = Asked(
        task=task,
        length=length,
        count=count,
        pieces=pieces,
        strings=strings,
        draws=Draws(seed),
        reserved=reserved,
    )
    if task == "vt":
        return tracking.generate(asked)
    if task == "fwe":
        return words.frequent_words(asked)
    if task.startswith("qa"):
        return questions.generate(asked)
    drawn = given or (published_words(strings.more_words) if strings.published else own_words())
    if task == "cwe":
        return words.common_words(asked, drawn.listed, drawn.more)
    return needles.generate(asked, drawn.keys, prose.sentences())
