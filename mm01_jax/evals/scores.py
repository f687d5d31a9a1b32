"""How an answer is judged, each rule a function of (answer, what is asked for) with a score in [0, 1]; and intervals.

`every` and `some` are RULER's (`string_match_all`, `string_match_part`), `parts` is MR-NIAH's adjusted recall.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

REFUSALS = ("sorry", "no previous conversation")
REFUSALS_CHINESE = ("抱歉", "没有之前的对话")
_Z = 1.959963984540054  # of a normal distribution, 97.5 % lie below


def every(answer: str, wanted: Sequence[str]) -> float:
    """The share of the wanted texts that the answer contains, small and capital letters alike."""
    return sum(text.lower() in answer.lower() for text in wanted) / len(wanted)


def some(answer: str, wanted: Sequence[str]) -> float:
    """Whether the answer contains one of the wanted texts, small and capital letters alike."""
    return float(any(text.lower() in answer.lower() for text in wanted))


def parts(answer: str, wanted: Sequence[str]) -> float:
    """The share of the parts of a past answer that are repeated, letter by letter; 0 of an answer that declines, in the
    language of that past answer."""
    refusals = REFUSALS_CHINESE if any("\u4e00" <= letter <= "\u9fff" for letter in wanted[0]) else REFUSALS
    if any(text in answer.lower() for text in refusals):
        return 0.0
    return sum(part in answer for text in wanted for part in parts_of(text)) / sum(len(parts_of(t)) for t in wanted)


def parts_of(text: str) -> list[str]:
    """What an answer of MR-NIAH is made of: its lines, where each is a sentence or an item; else what commas part."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    items = [re.fullmatch(r"\d+\. *(.+)", line) for line in lines]
    if all(items):
        return [item[1] for item in items]
    if len(lines) > 1 and all(line.endswith((".", "。")) for line in lines):
        return [line.rstrip(".。") for line in lines]
    return [part.strip() for part in re.split(r"[,.，。\n]", text) if part.strip()]


def exact(answer: str, wanted: Sequence[str]) -> float:
    """Whether the answer begins with the wanted text, and not with a longer word; blanks before it aside."""
    said = answer.strip()
    return float(said.startswith(wanted[0]) and not said[len(wanted[0]) :][:1].isalnum())


def edits(answer: str, wanted: str) -> int:
    """The fewest characters to insert, remove or change that make `wanted` of as much of the answer's beginning as
    suits best: what is said after a copy costs nothing."""
    answer = answer.strip()[: 2 * len(wanted)]
    row = list(range(len(answer) + 1))
    for number, letter in enumerate(wanted, 1):
        before, row = row, [number]
        for place, other in enumerate(answer, 1):
            row.append(min(before[place] + 1, row[-1] + 1, before[place - 1] + (letter != other)))
    return min(row)


SCORERS = {"every": every, "some": some, "parts": parts, "exact": exact}


class Interval(NamedTuple):
    """A mean of so many scores, and where 95 % of such intervals have the true one (Wilson)."""

    mean: float
    low: float
    high: float
    count: int


def interval(scores: Sequence[float]) -> Interval:
    """Wilson's interval. Scores between 0 and 1 spread less than coins do, so of them it is rather too wide."""
    count = len(scores)
    mean = sum(scores) / count
    middle = (mean + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z * math.sqrt(mean * (1 - mean) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
    # Of a mean of 0 or 1 that end is exact, but for rounding.
    return Interval(mean, middle - half if mean > 0 else 0.0, middle + half if mean < 1 else 1.0, count)
