"""Samples that are asked one after another because their prompts begin alike, and what is asked of all tasks."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mm01_jax.evals.sample import Sample, Turn


class Grid(NamedTuple):
    """lengths: tokens of prompt and answer. depths: in [0, 1], how far into a text what is asked for stands. samples:
    of each cell."""

    lengths: Sequence[int]
    depths: Sequence[float]
    samples: int
    seed: int


class Group(NamedTuple):
    """begins: what all prompts begin with or part from, taken in first; the last turn goes on. None: nothing is.

    samples: `count` of them, in the order in which they are asked. tokens: of all of them, at most. longest: of
    one of them, at most.
    """

    begins: Sequence[Turn] | None
    samples: Iterable[Sample]
    count: int
    tokens: int
    longest: int


def depths_of(count: int) -> list[float]:
    """So many depths, evenly from the beginning of a text to its end."""
    return [round(number / (count - 1), 4) if count > 1 else 0.5 for number in range(count)]


def too_short(task: str, length: int, least: int) -> ValueError:
    """The error of a length that no sample of a task fits; least: tokens that one takes."""
    return ValueError(f"--lengths: got {length:,} for {task}; allowed: at least {least:,} tokens with this tokenizer")
