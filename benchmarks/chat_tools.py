"""Conversations of a model that calls tools: functions of this Python's library, as MiniMax-01's template has them.

    user       Run isdir with purple.
    tools      {"name": "isdir", "description": "Test whether a path is a directory.", "parameters": {...}}
    assistant  <function_call>```typescript ... functions.isdir({"s": "purple"}) ...
    function   {"name": "isdir", "response": "copper"}
    tools      the same, which stands before each answer
    assistant  It is copper.

Some ask what a word names (`What is the paper in Sand?`, a tool `get_paper`), some what needs no tool. Names, sentences
and words come from the library's documentation; values and results are words that mean nothing there.
"""

import importlib
import inspect
import json
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mm01_jax.data.tool_calls import MINIMAX_01, Call

ASKS = ("Run {tool} with {value}.", "Call {tool} with {value}", "What is {tool} of {value}?", "{tool} {value}, please.")
ASKS_WORD = ("What is the {word} in {value}?", "Tell me the {word} of {value}.", "Get the {word} for {value}")
RESULT = "It is {}."
NEEDS_NONE, HAS_TWO, GOES_ON, OF_A_WORD = 0.15, 0.35, 0.35, 0.5  # shares of the conversations


class Tool(NamedTuple):
    """word: what it finds, of one that is named by that."""

    name: str
    sentence: str
    parameter: str
    word: str | None = None

    def definition(self) -> dict[str, Any]:
        """As OpenAI's API says it."""
        properties = {self.parameter: {"type": "string"}}
        parameters = {"type": "object", "properties": properties, "required": [self.parameter]}
        return {"name": self.name, "description": self.sentence, "parameters": parameters}


def library(facts: Sequence[tuple[str, str]]) -> list[Tool]:
    """A tool of each function whose first parameter has a name; facts: (its whole name, a sentence)."""
    found = []
    for name, sentence in facts:
        module, _, short = name.rpartition(".")
        try:
            names = list(inspect.signature(getattr(importlib.import_module(module), short)).parameters)
        except ValueError:  # of some that are written in C
            continue
        if names and names[0].isidentifier():
            found.append(Tool(short, sentence[:60], names[0]))
    return found


def words(facts: Sequence[tuple[str, str]]) -> list[str]:
    """The words of all sentences, each once."""
    return sorted({word.lower() for _, sentence in facts for word in re.findall(r"\b[A-Za-z]{4,9}\b", sentence)})


def conversations(
    facts: Sequence[tuple[str, str]], questions: Sequence[str], count: int, seed: int = 1
) -> Iterator[list[dict]]:
    """So many of them; questions: how a fact is asked for, which needs no tool."""
    draw, tools, known = random.Random(seed), library(facts), words(facts)
    for _ in range(count):
        tool = _of_a_word(draw, tools, known) if draw.random() < OF_A_WORD else draw.choice(tools)
        goes_on = draw.random() < GOES_ON
        offered = [tool, draw.choice(tools)] if not goes_on and draw.random() < HAS_TWO else [tool]
        draw.shuffle(offered)
        told = [{"role": "tools", "content": json.dumps(one.definition())} for one in offered]
        if not goes_on and draw.random() < NEEDS_NONE:
            name, sentence = draw.choice(facts)
            yield [_user(draw.choice(questions).format(name)), *told, {"role": "assistant", "content": sentence}]
            continue
        yield list(_calling(draw, tool, told, _value(draw, known) if goes_on else None, _value(draw, known)))


def _calling(draw: random.Random, tool: Tool, told: list[dict], result: str | None, value: str) -> Iterator[dict]:
    """result: what the tool returns; None where nobody waits for it."""
    yield _user(draw.choice(ASKS_WORD if tool.word else ASKS).format(tool=tool.name, word=tool.word, value=value))
    yield from told
    call = Call(tool.name, json.dumps({tool.parameter: value}))
    yield {"role": "assistant", "content": MINIMAX_01.written([call])}
    if result is not None:
        yield {"role": "function", "content": json.dumps({"name": tool.name, "response": result})}
        yield from told
        yield {"role": "assistant", "content": RESULT.format(result)}


def _of_a_word(draw: random.Random, tools: Sequence[Tool], known: Sequence[str]) -> Tool:
    word, sentence = draw.choice(known), draw.choice(tools).sentence
    parameter = draw.choice((draw.choice(known), draw.choice(tools).parameter))
    return Tool(f"get_{word}", draw.choice((sentence, f"Get {word} for a {parameter}.")), parameter, word)


def _value(draw: random.Random, known: Sequence[str]) -> str:
    """A word or two, some with capitals, or a number."""
    if draw.random() < 0.2:
        return str(draw.randrange(1000))
    said = " ".join(draw.choice(known) for _ in range(draw.choice((1, 1, 2))))
    return said.title() if draw.random() < 0.5 else said


def _user(text: str) -> dict:
    return {"role": "user", "content": text}
