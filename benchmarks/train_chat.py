"""A chat model of CPU size that ends its answers: data, training, and the 2 MB of weights that the tests serve.

Conversations are made from the docstrings of this Python's library: a question about a function, the first sentence of
its documentation; some call tools (`chat_tools.py`). The answers alone are learnt. The weights are written in bfloat16,
in PyTorch's form.

    python -m benchmarks.train_chat [--workdir=runs/chat] [--target=runs/chat/weights] [--json=FILE]

The committed weights are of this command, --target=tests/fixtures/chat_tiny.
"""

import importlib
import inspect
import itertools
import json
import pathlib
import random
import sys
import time
from collections.abc import Iterator

from benchmarks import chat_tools
from benchmarks.results import Report, add_json, device
from mm01_jax import loading
from mm01_jax.config import command_line, fields
from mm01_jax.convert.to_torch import to_torch
from mm01_jax.data.conversations import END, render
from mm01_jax.data.tokenizer import open_tokenizer
from mm01_jax.inference.sampling import Sampling
from mm01_jax.inference.text import Settings, answers
from mm01_jax.train import loop
from tests.command_line import Parser

MODULES = (
    *("math", "json", "os.path", "random", "statistics", "textwrap", "shutil", "glob", "heapq", "bisect", "copy"),
    *("itertools", "functools", "operator", "string", "time", "calendar", "fnmatch", "secrets", "struct", "zlib"),
)
QUESTIONS = ("What does {} do?", "What is {} for?", "Tell me about {}.", "Explain {}")
GREETINGS = ("Hello", "Hi", "Hello!", "Good morning", "Hey there")
GREETING = "Hello! Ask me about a function of Python's library."
SYSTEM = ("Be kind.", "You are a helpful assistant.", "Answer in one sentence.")
LONGEST = 100  # characters of an answer
COPIES = 12  # of each fact, asked in other words and beside others
CALLING = 10_000  # conversations that call tools


def facts() -> list[tuple[str, str]]:
    """(a function's name, the first sentence of its documentation), in the order of `MODULES`."""
    found = []
    for module in MODULES:
        for name, value in sorted(vars(importlib.import_module(module)).items()):
            if name.startswith("_") or not callable(value) or not (said := inspect.getdoc(value)):
                continue
            sentence = " ".join(said.split("\n\n")[0].split()).partition(". ")[0].rstrip(".") + "."
            if len(sentence) <= LONGEST and sentence.isascii() and "(" not in sentence:
                found.append((f"{module}.{name}", sentence))
    return found


def conversations(seed: int) -> Iterator[list[dict[str, str]]]:
    """Of one or two questions, some with a setting, some with a greeting."""
    draw = random.Random(seed)
    asked = [fact for fact in facts() for _ in range(COPIES)]
    draw.shuffle(asked)
    while asked:
        messages = [{"role": "system", "content": draw.choice(SYSTEM)}] if draw.random() < 0.3 else []
        if draw.random() < 0.15:
            messages += _turn(draw.choice(GREETINGS), GREETING)
        for _ in range(draw.choice((1, 1, 2))):
            if asked:
                name, sentence = asked.pop()
                messages += _turn(draw.choice(QUESTIONS).format(name), sentence)
        yield messages


def _turn(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write(path: pathlib.Path, tokenizer, longest: int) -> int:
    """How many conversations were written; one that is longer than a row is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made_all = [*conversations(0), *chat_tools.conversations(facts(), QUESTIONS, CALLING)]
    random.Random(2).shuffle(made_all)
    fitting = [made for made in made_all if len(render(made, tokenizer).ids) <= longest]
    path.write_text("".join(json.dumps({"messages": made}) + "\n" for made in fitting), encoding="utf-8")
    return len(fitting)


def questions(count: int) -> Iterator[tuple[list[dict], str]]:
    """(a conversation, its answer): so many facts, then so many that no training had, with tools."""
    for name, sentence in itertools.islice(facts(), count):
        yield [{"role": "user", "content": QUESTIONS[0].format(name)}], sentence
    for made in chat_tools.conversations(facts(), QUESTIONS, count, seed=3):
        first = next(place for place, message in enumerate(made) if message["role"] == "assistant")
        yield made[:first], made[first]["content"]


def right_answers(weights: pathlib.Path, count: int) -> tuple[int, int, int]:
    """Of so many facts and as many questions with tools: answers that ended by themselves; right facts; right answers
    with tools."""
    loaded = loading.load(str(weights))
    asked = list(questions(count))
    prompts = [render(said, loaded.tokenizer, generate=True).ids for said, _ in asked]
    settings, stop = Settings(LONGEST + 60, Sampling(temperature=0.0), 0), loaded.tokenizer.special(END)
    said = [answer.text for answer in answers(loaded.model, loaded.tokenizer, prompts, settings, stop)]
    right = [text == answer for text, (_, answer) in zip(said, asked, strict=True)]
    return sum(len(text) < LONGEST + 60 for text in said), sum(right[:count]), sum(right[count:])


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.train_chat", __doc__)
    parser.add_argument("--workdir", default="runs/chat")
    parser.add_argument("--target", default="runs/chat/weights", help="a folder to make, for the weights")
    add_json(parser)
    given = parser.parse_args(argv)
    began, root = time.monotonic(), pathlib.Path(given.workdir)
    config = fields.replace(command_line.load_config("chat_tiny"), "data.source", str(root / "conversations.jsonl"))
    written = write(root / "conversations.jsonl", open_tokenizer("bytes"), config.train.sequence_length)
    print(f"{len(facts())} facts, {written} conversations")
    loop.run(config, str(root / "run"), None)
    to_torch(root / "run", given.target, dtype="bfloat16")
    ended, right, called = right_answers(pathlib.Path(given.target), 40)
    seconds = time.monotonic() - began
    print(
        f"of 80 questions {ended} answers ended; {right} of 40 were right, {called} of 40 with tools; {seconds:.0f} s"
    )
    report = Report(given.json, "benchmarks.train_chat", argv)
    report.add("chat_tiny: answers that ended, of 80 questions", ended, "answers", device=device())
    report.add("chat_tiny: right answers, of 40 questions", right, "answers", device=device())
    report.add("chat_tiny: right answers, of 40 questions with tools", called, "answers", device=device())
    return 0 if ended >= 72 else 1


if __name__ == "__main__":
    sys.exit(main())
