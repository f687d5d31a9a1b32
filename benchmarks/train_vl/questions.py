"""Questions about pictures with one true answer each, as conversations, and the data of every run made of them."""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from benchmarks.train_vl.pictures import Picture, digit, photograph
from mm01_jax.data.conversation_files import pack_record

TOLD = 10  # letters that tell a picture to a model that only reads, as many as a picture of one tile takes tokens


class Question(NamedTuple):
    """The pictures, what is asked about them, the answer."""

    pictures: tuple[Picture, ...]
    words: str
    answer: str


def which_digit(random: np.random.Generator, held_out: bool) -> Question:
    picture = digit(random, held_out)
    return Question((picture,), "digit?", str(picture.digits[0]))


def which_colour(random: np.random.Generator, held_out: bool) -> Question:
    picture = photograph(random, held_out) if random.random() < 0.5 else digit(random, held_out)
    return Question((picture,), "colour?", picture.colour)


def which_is_larger(random: np.random.Generator, held_out: bool) -> Question:
    pictures = digit(random, held_out), digit(random, held_out)
    if pictures[0].digits == pictures[1].digits:
        return which_is_larger(random, held_out)
    return Question(pictures, "larger?", "first" if pictures[0].digits > pictures[1].digits else "second")


def how_many(random: np.random.Generator, held_out: bool) -> Question:
    count = int(random.integers(1, 3))
    return Question((digit(random, held_out, count),), "count?", ("one", "two")[count - 1])


def description(random: np.random.Generator, held_out: bool) -> Question:
    picture = digit(random, held_out)
    return Question((picture,), "", f"{picture.digits[0]} {picture.colour}")


TASKS: dict[str, Callable[[np.random.Generator, bool], Question]] = {
    "digit": which_digit,
    "larger": which_is_larger,
    "colour": which_colour,
    "count": how_many,
}
CHANCE = {"digit": 0.1, "larger": 0.5, "colour": 1 / 3, "count": 0.5}


def messages(question: Question, *, told: np.random.Generator | None = None) -> list[dict[str, Any]]:
    """A conversation of one question; with `told` its pictures are letters: what they show, in any order."""
    shown = "<image>" * len(question.pictures)
    if told is not None:
        shown = "".join([_letters(picture, told) for picture in question.pictures])
    return [
        {"role": "user", "content": shown + question.words},
        {"role": "assistant", "content": question.answer},
    ]


def _letters(picture: Picture, random: np.random.Generator) -> str:
    words = [*map(str, picture.digits), picture.colour[0].upper()]
    return "".join(random.choice(words, size=TOLD * max(len(picture.digits), 1)))


def questions(seed: int, count: int, tasks: list[str], *, held_out: bool = False) -> Iterator[Question]:
    random = np.random.default_rng(seed)
    for _ in range(count):
        name = str(random.choice(tasks))
        yield (description if name == "description" else TASKS[name])(random, held_out)


def write(folder: pathlib.Path) -> None:
    """The data of every run, about 50 MB: text.jsonl, captions, stage1 and stage2.arrayrecord."""
    folder.mkdir(parents=True, exist_ok=True)
    told = np.random.default_rng(1)
    asked = questions(2, 6000, ["digit", "larger", "larger", "colour", "count", "description"])
    lines = [json.dumps({"messages": messages(question, told=told)}) for question in asked]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    _write_records(folder / "captions.arrayrecord", questions(3, 20_000, ["description"]))
    _write_records(
        folder / "stage1.arrayrecord",
        questions(4, 5000, ["digit", "digit", "larger", "larger", "colour", "description"]),
    )
    understood = ["digit"] * 3 + ["larger"] * 4 + ["colour", "count"]
    _write_records(folder / "stage2.arrayrecord", questions(5, 12_000, understood))


def _write_records(path: pathlib.Path, asked: Iterator[Question]) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:16")
    for question in asked:
        writer.write(pack_record(messages(question), [picture.png for picture in question.pictures]))
    writer.close()
