"""Needles in a conversation of many rounds, in MR-NIAH's form, or of its published files (`rounds`).

An answer of three to six parts stands in an early round, another answer to the same request elsewhere, as a decoy; the
last request asks for the first or the second of both, and each part that comes back counts. Ten needles at 25, 50 and
75 % of the rounds make the 30 samples of a length, as published (MiniMax-01, evaluation/MR-NIAH).
"""

import itertools
import os
import pathlib
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mm01_jax.data import prose
from mm01_jax.data.text import BadFile
from mm01_jax.data.tokenizer import check_utf8
from mm01_jax.evals.group import Grid, Group, too_short
from mm01_jax.evals.prompts import Prompts
from mm01_jax.evals.ruler.families import own_words
from mm01_jax.evals.sample import ASSISTANT, USER, Sample, Turn
from mm01_jax.evals.scores import parts_of
from mm01_jax.files import Door, shown
from mm01_jax.progress import Watch

FILES = Door(BadFile)
TOPICS = ("boats", "bridges", "clouds", "gardens", "lamps", "islands", "paths", "rivers", "towers", "winters")
DEPTHS = (0.25, 0.5, 0.75)
PARTS = (3, 6)  # of an answer, at least and at most
MOST_LINE = 2**23  # bytes of a published sample: one of a million tokens has six million, each takes 200 of memory
_SENTENCES = 3  # of a round between needles
_SPARE = 16  # tokens more than an answer has


class Needle(NamedTuple):
    """Of a topic: the answer asked for and the decoy's, where each stands, and whether the decoy comes first."""

    topic: str
    answer: str
    decoy: str
    depth: float
    other: float

    @property
    def request(self) -> str:
        count = len(parts_of(self.answer))
        return f"Give me {count} code words for {self.topic}, as a list with numbers."

    @property
    def question(self) -> str:
        which = "first" if self.depth < self.other else "second"
        return f"Repeat the {which} list of code words for {self.topic} that you gave me."


def groups(grid: Grid, prompts: Prompts) -> Iterator[Group]:
    """A group a length, `samples` times 30 samples in it. All have the same number of rounds.

    Raises:
      ValueError: a length that no conversation with a needle and its decoy fits.
    """
    draws = random.Random(grid.seed)
    for length in grid.lengths:
        needles = [_needle(draws, topic, depth) for topic in TOPICS * grid.samples for depth in DEPTHS]
        fixed = max(_size(prompts, needle) for needle in needles)
        rounds, tokens = [], 0
        while True:
            told = _round(len(rounds))
            tokens += sum(prompts.per_turn(turn.role) + prompts.pieces.count(turn.pieces) for turn in told)
            if fixed + tokens > length:
                break
            rounds.append(told)
        if len(rounds) < 3:
            raise too_short("rounds", length, fixed + tokens + (2 - len(rounds)) * tokens)
        samples, watch = [], Watch(f"rounds: samples of {length:,} tokens made", len(needles))
        for number, needle in enumerate(needles):
            samples.append(_sample(prompts, needle, rounds, length, number))
            watch.at(number)
        yield Group(list(itertools.chain(*rounds)), samples, len(samples), length * len(samples), length)


def _needle(draws: random.Random, topic: str, depth: float) -> Needle:
    count, other = draws.randint(*PARTS), draws.choice([place for place in DEPTHS if place != depth])
    lists = [draws.choice(own_words().keys) for _ in range(2 * count)]
    answer, decoy = (
        "\n".join(f"{n}. {word}" for n, word in enumerate(part, 1)) for part in (lists[:count], lists[count:])
    )
    return Needle(topic, answer, decoy, depth, other)


def _round(number: int) -> tuple[Turn, Turn]:
    sentences = prose.sentences()
    said = [sentences[(number * _SENTENCES + place) % len(sentences)] for place in range(_SENTENCES)]
    told = [said[0], *(f" {sentence}" for sentence in said[1:])]
    return Turn(USER, ("Tell me part", f" {number + 1}", " of the library's manual.")), Turn(ASSISTANT, tuple(told))


def _size(prompts: Prompts, needle: Needle) -> int:
    """Tokens of a conversation of the needle and its decoy alone, and of the answer."""
    turns = (*_asked(needle, needle.answer), *_asked(needle, needle.decoy), Turn(USER, (needle.question,)))
    return len(prompts.ids(_made(needle, turns, {}))) + _max_tokens(prompts, needle.answer)


def _asked(needle: Needle, answer: str) -> tuple[Turn, Turn]:
    return Turn(USER, (needle.request,)), Turn(ASSISTANT, (answer,))


def _max_tokens(prompts: Prompts, answer: str) -> int:
    return prompts.pieces.count([answer]) + _SPARE


def _sample(prompts: Prompts, needle: Needle, rounds: Sequence, length: int, number: int) -> Sample:
    asked = sorted([(needle.depth, needle.answer), (needle.other, needle.decoy)])
    places = [round(depth * len(rounds)) for depth, _ in asked]
    said = list(rounds)
    for place, (_, answer) in reversed(list(zip(places, asked, strict=True))):
        said.insert(place, _asked(needle, answer))
    turns = (*itertools.chain(*said), Turn(USER, (needle.question,)))
    found = [number for number, turn in enumerate(turns) if turn.text == needle.answer]
    facts = {"cell": needle.depth, "depths": [round(found[0] / len(turns), 4)], "messages": len(turns)}
    facts |= {"decoys": 1, "parts": len(parts_of(needle.answer))}
    sample = _made(needle, turns, facts)
    max_tokens = _max_tokens(prompts, needle.answer)
    size = len(prompts.ids(sample)) + max_tokens
    return Sample(**{**vars(sample), "length": length, "number": number, "size": size, "max_tokens": max_tokens})


def _made(needle: Needle, turns: Sequence[Turn], facts: dict[str, Any]) -> Sample:
    return Sample(
        task="rounds",
        number=0,
        length=0,
        size=0,
        turns=tuple(turns),
        prefix="",
        answers=(needle.answer,),
        scorer="parts",
        max_tokens=0,
        chance=0.0,
        facts=facts,
    )


# Published files.


def published(path: str, prompts: Prompts) -> list[Group]:
    """The samples of a file of MR-NIAH or of all `.jsonl` files of a folder, a group a length.

    Raises:
      BadFile: a line of another form; names both. ValueError: no such file.
    """
    by_length: dict[int, list[Sample]] = {}
    for name, turns, label, length in _records(path):
        samples = by_length.setdefault(length, [])
        place = next(number for number, turn in enumerate(turns) if turn.text == label)
        depth, nominal = round(place / len(turns), 4), DEPTHS[len(samples) % len(DEPTHS)]  # as they come in the files
        facts = {
            "cell": nominal,
            "depths": [depth],
            "messages": len(turns),
            "parts": len(parts_of(label)),
            "file": name,
        }
        sample = _made(Needle("", label, "", 0.0, 0.0), turns, facts)
        max_tokens = _max_tokens(prompts, label)
        size = len(prompts.ids(sample)) + max_tokens
        told = {"length": length, "number": len(samples), "size": size, "max_tokens": max_tokens}
        samples.append(Sample(**{**vars(sample), **told}))
    groups = []
    for _, samples in sorted(by_length.items()):
        sizes = [sample.size for sample in samples]
        groups.append(Group(None, samples, len(samples), sum(sizes), max(sizes)))
    return groups


def check_data(path: str) -> None:
    """BadFile where a file or folder has no samples of MR-NIAH; of a folder every line is looked at."""
    for _ in _records(path):
        pass


def _records(path: str) -> Iterator[tuple[str, tuple[Turn, ...], str, int]]:
    """(file, turns, label, length) of each line."""
    place = pathlib.Path(path)
    files = sorted(place.glob("*.jsonl")) if place.is_dir() else [place]
    if not files:
        raise ValueError(f"--data={shown(path)}: allowed: a .jsonl file of MR-NIAH, or a folder with such")
    empty, done = True, 0
    watch = Watch(f"--data={shown(path)}: read", sum(os.lstat(file).st_size for file in files), "bytes")
    for file in files:
        with FILES.open(file, root=place if place.is_dir() else None) as lines:
            for number, line in enumerate(iter(lambda: lines.readline(MOST_LINE + 1), b""), 1):  # noqa: B023
                empty, done = False, done + len(line)
                watch.at(done)
                if len(line) > MOST_LINE:
                    raise BadFile(f"--data={shown(file)}, line {number}: more than {MOST_LINE:,} bytes")
                where = f"--data={shown(file)}, line {number}"
                try:
                    checked = _checked(where, FILES.parse(where, line))
                except ValueError as error:
                    raise BadFile(str(error)) from None
                yield shown(file), *checked
    if empty:
        raise BadFile(f"--data={shown(path)}: holds no line")


def _checked(where: str, record: dict) -> tuple[tuple[Turn, ...], str, int]:
    """(turns, label, length) of a line."""
    messages, label, length = (record.get(name) for name in ("messages", "label", "length_class"))
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"{where}: label is {shown(repr(label))}; allowed: the text of an earlier answer")
    if not parts_of(label):
        raise ValueError(f"{where}: label is {shown(repr(label))}; allowed: a text with a part that can be counted")
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise ValueError(f"{where}: length_class is {shown(repr(length))}; allowed: a whole number from 1 on")
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: messages is {shown(repr(messages))}; allowed: a list of role and content")
    turns = []
    for message in messages:
        role, text = (message.get(name) if isinstance(message, dict) else None for name in ("role", "content"))
        if role not in (USER, ASSISTANT) or not isinstance(text, str):
            raise ValueError(f"{where}: a message is {shown(repr(message))}; allowed: user or assistant, and a text")
        try:
            check_utf8(f"{where}: a message", text)
        except ValueError as error:
            raise ValueError(str(error)) from None
        turns.append(Turn(role, (text,)))
    if turns[-1].role != USER or label not in [turn.text for turn in turns if turn.role == ASSISTANT]:
        raise ValueError(f"{where}: allowed: a request at the end, and the label among the answers before it")
    return tuple(turns), label, length
