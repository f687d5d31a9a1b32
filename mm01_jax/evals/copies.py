"""UUIDs to be copied letter by letter, out of lines that are nothing but names with UUIDs (`copy`).

The text is taken in once a length, and those at each depth are asked for from its end. A copy is right or not; how far
it is from right is counted in letters (`scores.edits`).
"""

import itertools
import random
import uuid
from collections.abc import Iterator
from typing import NamedTuple

from mm01_jax.evals.group import Grid, Group, too_short
from mm01_jax.evals.pieces import filled
from mm01_jax.evals.prompts import Prompts
from mm01_jax.evals.ruler.families import own_words
from mm01_jax.evals.sample import USER, Sample, Turn

BEFORE = "These lines give things their codes, and the end asks for a code, letter by letter.\n"
LINE = "The code of {key} is {value}.\n"
AFTER = "Which is the code of {key}?"
PREFIX = " The code of {key} is"
CHANCE = 2.0**-122
_SPARE = 8  # tokens more than a code has


class Line(NamedTuple):
    """tokens: of the line; asking: of its question and its answer."""

    key: str
    code: str
    tokens: int
    asking: int


def groups(grid: Grid, prompts: Prompts) -> Iterator[Group]:
    """A group for each text; `samples` texts of each length.

    Raises:
      ValueError: a length that not even two lines fit.
    """
    draws = random.Random(grid.seed)
    for length, text in itertools.product(grid.lengths, range(grid.samples)):
        room = length - prompts.reserved - prompts.pieces.count([BEFORE])
        lines, tokens, asking = [], 0, 0
        while True:
            line = _line(prompts, draws)
            asking = max(asking, line.asking)
            if tokens + line.tokens + asking > room:
                break
            lines.append(line)
            tokens += line.tokens
        if len(lines) < 2:
            raise too_short("copy", length, length - room + 2 * line.tokens + asking)
        context = [piece for line in lines for piece in filled(LINE, key=line.key, value=line.code)]
        samples = []
        for number, depth in enumerate(grid.depths):
            place = round(depth * (len(lines) - 1))
            distance = sum(line.tokens for line in lines[place + 1 :])
            facts = {"cell": depth, "depths": [round(place / (len(lines) - 1), 4)], "distance": distance}
            facts |= {"units": len(lines), "distractors": len(lines) - 1}
            which = length, text * len(grid.depths) + number
            samples.append(_sample(prompts, which, context, lines[place], facts))
        yield Group([Turn(USER, (BEFORE, *context))], samples, len(samples), length * len(samples), length)


def _line(prompts: Prompts, draws: random.Random) -> Line:
    key, code = draws.choice(own_words().keys), str(uuid.UUID(int=draws.getrandbits(128), version=4))
    tokens = prompts.pieces.count(filled(LINE, key=key, value=code))
    asked = [*filled(AFTER, key=key), PREFIX.format(key=key)]
    return Line(key, code, tokens, prompts.pieces.count(asked) + _max_tokens(prompts, code))


def _max_tokens(prompts: Prompts, code: str) -> int:
    return prompts.pieces.count([f" {code}"]) + _SPARE


def _sample(prompts: Prompts, which: tuple[int, int], context: list[str], line: Line, facts: dict) -> Sample:
    """which: (length, number)."""
    length, number = which
    turn = Turn(USER, (BEFORE, *context, *filled(AFTER, key=line.key)))
    prefix, max_tokens = PREFIX.format(key=line.key), _max_tokens(prompts, line.code)
    return Sample(
        task="copy",
        number=number,
        length=length,
        size=prompts.reserved + prompts.pieces.count([*turn.pieces, prefix]) + max_tokens,
        turns=(turn,),
        prefix=prefix,
        answers=(line.code,),
        scorer="exact",
        max_tokens=max_tokens,
        chance=CHANCE,
        facts=facts,
    )
