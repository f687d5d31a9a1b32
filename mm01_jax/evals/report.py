"""What answers amount to: a score with its interval for each cell, what whoever guesses would have, and the cost."""

import collections
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

from mm01_jax.evals.run import Answered
from mm01_jax.evals.sample import Sample
from mm01_jax.evals.scores import SCORERS, edits, interval


def record_of(answered: Answered) -> dict[str, Any]:
    """A line of the file of answers, without the answer's text."""
    sample = answered.sample
    record = {"task": sample.task, "length": sample.length, "number": sample.number, **sample.facts}
    record |= {"wanted": list(sample.answers), "score": SCORERS[sample.scorer](answered.text, sample.answers)}
    if sample.scorer == "exact":
        record["edits"] = edits(answered.text, sample.answers[0])
    record |= {"chance": sample.chance, "bytes": sample.bytes, "tokens": answered.tokens, "cached": answered.cached}
    return record


def written(sample: Sample) -> dict[str, Any]:
    """A line of a file for other servers: what is said as text and as messages, and what is asked for."""
    return {
        "task": sample.task,
        "length": sample.length,
        "index": sample.number,
        "messages": [{"role": turn.role, "content": turn.text} for turn in sample.turns],
        "answer_prefix": sample.prefix,
        "outputs": list(sample.answers),
        "scorer": sample.scorer,
        "max_tokens": sample.max_tokens,
        "tokens": sample.size,
        "bytes": sample.bytes,
        **sample.facts,
    }


class Cell(NamedTuple):
    """What a table shows of samples that are alike. low, high: 95 %, Wilson. edits: letters wrong, of copies."""

    task: str
    length: int
    depth: float | None
    mean: float
    low: float
    high: float
    count: int
    chance: float
    edits: float | None


def cells(records: Iterable[Mapping[str, Any]], *, by_depth: bool = False) -> list[Cell]:
    """A cell for each task and length, or for each depth of them."""
    grouped = collections.defaultdict(list)
    for record in records:
        depth = record.get("cell") if by_depth else None
        grouped[record["task"], record["length"], depth].append(record)
    return [_cell(*key, group) for key, group in sorted(grouped.items(), key=lambda item: item[0])]


def by_distance(records: Iterable[Mapping[str, Any]]) -> list[tuple[int, Cell]]:
    """(tokens, cell) of all samples whose needle is at most that many tokens from the end, twice as many each time."""
    grouped = collections.defaultdict(list)
    for record in records:
        if "distance" in record:
            grouped[1 << max(record["distance"], 1).bit_length()].append(record)
    return [(most, _cell(group[0]["task"], 0, None, group)) for most, group in sorted(grouped.items())]


def _cell(task: str, length: int, depth: float | None, group: Sequence[Mapping[str, Any]]) -> Cell:
    found = interval([record["score"] for record in group])
    wrong = [record["edits"] for record in group if "edits" in record]
    chance = sum(record["chance"] for record in group) / len(group)
    return Cell(task, length, depth, *found, chance, sum(wrong) / len(wrong) if wrong else None)


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Lines for a person: a score and its interval of each task and length, and of each distance."""
    lines = [f"{'task':<16}{'tokens':>10}{'bytes':>11}{'score':>9}{'95 %':>17}{'samples':>9}{'chance':>9}"]
    for cell in cells(records):
        texts = [r["bytes"] for r in records if (r["task"], r["length"]) == (cell.task, cell.length)]
        line = f"{cell.task:<16}{cell.length:>10,}{sum(texts) // len(texts):>11,}{_scores(cell)}"
        lines.append(line + (f"   {cell.edits:.2f} of 36 letters wrong" if cell.edits is not None else ""))
    if len(far := by_distance(records)) > 1:
        lines += ["", f"{'distance to the end, tokens at most':<37}{'score':>9}{'95 %':>17}{'samples':>9}{'chance':>9}"]
        lines += [f"{most:>37,}{_scores(cell)}" for most, cell in far]
    return "\n".join(lines)


def _scores(cell: Cell) -> str:
    between = f"{cell.low:.1%} to {cell.high:.1%}"
    return f"{cell.mean:>9.1%}{between:>17}{cell.count:>9,}{cell.chance:>9.1e}"


def cost(records: Sequence[Mapping[str, Any]], prefilled: int) -> str:
    """What states saved, in words. prefilled: tokens that were taken in, of shared beginnings too."""
    asked = sum(record["tokens"] for record in records)
    return f"took in {prefilled:,} tokens for prompts of {asked:,} ({prefilled / max(asked, 1):.1%})"


def versions() -> dict[str, str]:
    """Of what results follow from; Python's, whose library is the haystack, among them."""
    return {name: metadata.version(name) for name in ("jax", "flax", "numpy")} | {"python": platform.python_version()}
