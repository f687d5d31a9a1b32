"""An evaluation on its way: asked, shown as it goes, kept in files, and gone on with when it was cut off.

FILE.answers.jsonl has a line for each answer, in order; FILE the scores with what they follow from.
"""

import collections
import itertools
import json
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mm01_jax import cluster
from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.evals import figure, report, run
from mm01_jax.evals.group import Group
from mm01_jax.evals.tasks import Asked
from mm01_jax.files import Door, parse_json, shown, write, written
from mm01_jax.inference import answer_file
from mm01_jax.inference.answer_file import Begun
from mm01_jax.inference.prompt_answers import begun_by_all
from mm01_jax.inference.text import Answer
from mm01_jax.progress import Progress, Watch

FILES = Door(ValueError)
_ELSEWHERE = (
    "checkpoint",
    "mesh",
    "compile_cache",
    "slots",
    "json",
    "figure",
    "write",
    "task",
    "overrides",
    "api_key_file",
)


def check_files(asked: Asked) -> None:
    """ValueError where no library draws what is to be written, or two things would be written in one place."""
    given = asked.given
    if given.figure is not None:
        figure.check(given.figure)
    if given.json is not None and os.path.islink(answers := _answers(given.json)):  # that nobody named
        raise ValueError(f"{shown(answers)}: is a link, and answers are to lie there; remove it")
    if None not in (given.json, given.figure) and os.path.realpath(given.json) == os.path.realpath(given.figure):
        raise ValueError(f"--figure={shown(given.figure)}: allowed: another file than --json")
    if given.write is not None and (other := [name for name in ("json", "figure") if getattr(given, name) is not None]):
        raise ValueError(f"--{other[0]}: nothing is asked where --write writes the samples; allowed: one of the two")


def write_samples(asked: Asked, tokenizer) -> str:
    """The samples as lines for any other server; says how many there are."""
    groups, count = list(asked.make(asked.prompts(tokenizer))), 0
    watch = Watch("samples written", sum(group.count for group in groups))
    with written(asked.given.write) as file:
        for sample in (sample for group in groups for sample in group.samples):
            count += 1
            watch.at(count)
            file.write((json.dumps(report.written(sample), ensure_ascii=False) + "\n").encode())
    return f"{asked.given.write}: {count:,} samples"


def ask(asked: Asked, answerer: run.Answerer, tokenizer: Tokenizer, facts: Mapping[str, Any]) -> str:
    """Asks everything there is to ask; the table. facts: what answers follow from beside what was typed.

    Every process of a model's mesh calls it alike; the first writes files and shows how far it is.
    """
    prompts = asked.prompts(tokenizer)
    groups = list(asked.make(prompts))
    count, path = sum(group.count for group in groups), asked.given.json
    follows = _follows_from(asked, tokenizer, facts)
    begun = Begun() if path is None else begun_by_all(_answers(path), follows, [1] * count)
    records = [] if path is None or not cluster.is_first() else _known(path, begun, asked.make(prompts))
    began, tokens = time.monotonic(), sum(group.tokens for group in groups)
    lines = _lines(answerer.answers(prompts, groups, begun.prompts), records, tokens)
    if path is not None and cluster.is_first():
        answer_file.finish(_answers(path), begun, lines)
    else:
        collections.deque(lines, maxlen=0)
    spent = {"seconds": time.monotonic() - began, "prefilled_tokens": answerer.prefilled}
    if not cluster.is_first():
        return ""
    if path is not None:
        write(pathlib.Path(path), json.dumps(_result(follows, records, spent), indent=1).encode())
    if asked.given.figure is not None:
        figure.draw(asked.given.figure, records)
    said = f"{report.cost(records[begun.prompts :], spent['prefilled_tokens'])}, {spent['seconds']:,.0f} s"
    return f"{report.table(records)}\n\n{said}"


def _lines(answers: Iterator[run.Answered], records: list, tokens: int) -> Iterator[tuple[dict[str, Any], Answer]]:
    """What the file of answers has of each, and how far it is; `records` gets them, too."""
    progress = Progress(0, tokens) if cluster.is_first() else None
    seen = sum(record["length"] for record in records)
    for answered in answers:
        records.append(record := report.record_of(answered))
        seen += record["length"]
        if progress:
            mean = sum(one["score"] for one in records) / len(records)
            progress.show(min(seen, tokens), f"{len(records)} answers, score {mean:.3f}")
        yield record, Answer(answered.text, answered.finish)


def _answers(path: str) -> str:
    return f"{path}.answers.jsonl"


def _known(path: str, begun: Begun, groups: Iterable[Group]) -> list[dict[str, Any]]:
    """The answers of an earlier run that was cut off, each beside the sample that it answers.

    Raises:
      ValueError: a line is no answer to its sample, or says of it what does not follow.
    """
    if not begun.prompts:
        return []
    samples, records = itertools.chain.from_iterable(group.samples for group in groups), []
    with FILES.open(f"{_answers(path)}.partial") as file:
        for number, sample in enumerate(itertools.islice(samples, begun.prompts), start=1):
            said = parse_json(file.readline())
            text, finish, tokens, cached = (said.pop(name, None) for name in ("text", "finish", "tokens", "cached"))
            record = report.record_of(run.Answered(sample, text, finish, tokens, cached))
            whole = type(tokens) is type(cached) is int and 0 <= cached <= tokens <= sample.length
            if not whole or parse_json(json.dumps(record).encode()) != said | {"tokens": tokens, "cached": cached}:
                where = f"{_answers(path)}.partial: line {number}"
                raise ValueError(f"{where}: not an answer as it was written; remove the file to begin anew")
            records.append(record)
    return records


def _follows_from(asked: Asked, tokenizer: Tokenizer, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What answers follow from; how they are computed aside."""
    typed = {name: value for name, value in vars(asked.given).items() if name not in _ELSEWHERE}
    told = {"task": asked.task, "tokenizer_fingerprint": tokenizer.fingerprint}
    return {**typed, **told, **facts, "versions": report.versions()}


def _result(follows: Mapping[str, Any], records: list[dict[str, Any]], spent: Mapping[str, Any]) -> dict[str, Any]:
    """What the file of scores has."""
    return {
        **follows,
        **spent,
        "prompt_tokens": sum(record["tokens"] for record in records),
        "cells": [cell._asdict() for cell in report.cells(records)],
        "depths": [cell._asdict() for cell in report.cells(records, by_depth=True)],
        "distances": [{"at_most": most, **cell._asdict()} for most, cell in report.by_distance(records)],
    }
