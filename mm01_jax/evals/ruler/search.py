"""As much context as fits a length, found as RULER finds it: by halving the number of its units.

The draws of every try count: with the same seed, strings and tokenizer the samples are those of RULER's generators.
"""

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mm01_jax.evals.pieces import Pieces
from mm01_jax.evals.ruler.strings import Strings
from mm01_jax.evals.sample import USER, Sample, Turn

SHORT = 4096  # tokens, below which RULER takes smaller steps


class TooShort(ValueError):
    """A length that no sample of a family fits."""


class Draws:
    """The random numbers of one family at one length."""

    def __init__(self, seed: int):
        self.seed, self.python, self.numpy = seed, random.Random(seed), np.random.RandomState(seed)

    def shuffle(self, values: list) -> None:
        """In place; always the same order for so many values."""
        random.Random(self.seed).shuffle(values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of a family.

    length: tokens of prompt and answer, `reserved` of them the template's around the prompt.
    """

    task: str
    length: int
    count: int
    pieces: Pieces
    strings: Strings
    draws: Draws
    reserved: int = 0

    @property
    def limit(self) -> int:
        return self.length - self.reserved


class Drawn(NamedTuple):
    """A sample before it is numbered: its text in pieces, up to the prefix of its answer."""

    context: Sequence[str]
    prefix: str
    answers: tuple[str, ...]
    facts: dict[str, Any]

    @property
    def pieces(self) -> list[str]:
        return [*self.context, *([self.prefix] if self.prefix else [])]


class Family(NamedTuple):
    """max_tokens: of an answer. step: units more or less. first: units of the sample from whose tokens `most`, (limit,
    tokens of a unit) -> units, guesses what surely does not fit."""

    scorer: str
    max_tokens: int
    step: int
    chance: float
    first: int
    most: Callable[[int, float], int] = lambda limit, per_unit: int(limit / per_unit * 3)


def fit(asked: Asked, make: Callable[[int], Drawn], family: Family, limit: int, extra: int = 0) -> int:
    """The largest number of units whose sample and `extra` tokens fit the limit, by halving."""
    per_unit = asked.pieces.count(make(family.first).pieces) / family.first
    low, high, best = family.step, max(family.most(limit, per_unit), 2 * family.step), None
    while low <= high:
        middle = (low + high) // 2
        if asked.pieces.count(make(middle).pieces) + extra <= limit:
            best, low = middle, middle + 1
        else:
            high = middle - 1
    return family.step if best is None else best


def samples(asked: Asked, make: Callable[[int, int], Drawn], family: Family, units: int) -> Iterator[Sample]:
    """`asked.count` samples of as many units, fewer where one has turned out longer.

    Args:
      make: (number of the sample, units) -> what is drawn.

    Raises:
      TooShort: not even the fewest units fit.
    """
    for number in range(asked.count):
        used = units
        while True:
            drawn = make(number, used)
            size = asked.pieces.count(drawn.pieces) + family.max_tokens
            if size <= asked.limit:
                break
            if used <= family.step:
                raise TooShort(
                    f"{asked.task}: got length {asked.length:,}; allowed: at least {size + asked.reserved:,} tokens "
                    f"of {asked.pieces.tokenizer.name}"
                )
            used -= family.step
        yield numbered(asked, family, number, size, drawn)


def numbered(asked: Asked, family: Family, number: int, size: int, drawn: Drawn) -> Sample:
    """A sample of what was drawn; size: tokens with those of the answer, without the template's."""
    return Sample(
        task=asked.task,
        number=number,
        length=asked.length,
        size=size + asked.reserved,
        turns=(Turn(USER, tuple(drawn.context)),),
        prefix=drawn.prefix,
        answers=drawn.answers,
        scorer=family.scorer,
        max_tokens=family.max_tokens,
        chance=family.chance,
        facts=drawn.facts,
    )
