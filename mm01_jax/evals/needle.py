"""Needles in real text: one at every depth of every length, or many in one text, each asked for.

`needle` is the map of depths and lengths. All its texts are the same haystack with a needle somewhere, so the haystack
is taken in once, and each cell from the last kept states before its needle on.
`needles` hides one needle at each depth of a length and asks for one after another from the end of that text: one
prefill a length, and harder, since all others are in the way.
"""

import bisect
import itertools
import random
from collections.abc import Iterator, Sequence

from mm01_jax.data import prose
from mm01_jax.evals.group import Grid, Group, too_short
from mm01_jax.evals.pieces import filled
from mm01_jax.evals.prompts import Prompts
from mm01_jax.evals.ruler.families import own_words
from mm01_jax.evals.sample import USER, Sample, Turn

BEFORE = "Some secret numbers are somewhere in this text, and its end asks for what is secret.\n"
NEEDLE = " The secret number of {key} is {value}."
AFTER = "\nWhich is the secret number of {key}?"
PREFIX = " The secret number of {key} is"
MAX_TOKENS = 32
CHANCE = 1 / 9_000_000


class Haystack:
    """The library's sentences, each with a blank before it, and the tokens that they have up to each."""

    def __init__(self, prompts: Prompts, most: int, least: int = 1):
        """Until they have more than `most` tokens and are at least so many."""
        self.texts: list[str] = []
        self.tokens = [0]
        sentences = itertools.cycle(prose.sentences())
        while self.tokens[-1] <= most or len(self.texts) < least:
            self.texts.append(f" {next(sentences)}")
            self.tokens.append(self.tokens[-1] + prompts.pieces.count(self.texts[-1:]))

    def fitting(self, task: str, length: int, others: int, least: int) -> int:
        """How many sentences, at least so many, fit a length that has `others` tokens besides."""
        count = bisect.bisect_right(self.tokens, length - others) - 1
        if count < least:
            raise too_short(task, length, others + self.tokens[least])
        return count

    def place(self, depth: float, count: int) -> int:
        """Before which of the first `count` sentences a needle stands to have that share of their tokens before it."""
        return min(count, bisect.bisect_left(self.tokens, depth * self.tokens[count]))

    def share(self, place: int, count: int) -> float:
        """Of the tokens of the first `count` sentences those before one of them."""
        return round(self.tokens[place] / self.tokens[count], 4)


def one(grid: Grid, prompts: Prompts) -> Iterator[Group]:
    """The map: one group, with the longest haystack to begin with.

    Raises:
      ValueError: a length that no sample fits.
    """
    stack, words = Haystack(prompts, max(grid.lengths)), own_words().keys
    draws, cells = random.Random(grid.seed), list(itertools.product(grid.depths, range(grid.samples)))
    hidden = {length: [(draws.choice(words), _number(draws)) for _ in cells] for length in grid.lengths}
    counts = {}  # sentences of each length, as many as its longest needle lets in
    for length in grid.lengths:
        fixed = max(_fixed(prompts, {key: value}, key) for key, value in hidden[length])
        counts[length] = stack.fitting("needle", length, fixed, 1)

    def samples() -> Iterator[Sample]:
        for length, count in counts.items():
            for number, ((depth, _), (key, value)) in enumerate(zip(cells, hidden[length], strict=True)):
                place = stack.place(depth, count)
                context = [*stack.texts[:place], *filled(NEEDLE, key=key, value=value), *stack.texts[place:count]]
                distance = stack.tokens[count] - stack.tokens[place]
                facts = {"cell": depth, "depths": [stack.share(place, count)], "units": count, "distance": distance}
                yield _sample(prompts, ("needle", length, number), context, {key: value}, key, facts)

    begins = (BEFORE, *stack.texts[: max(counts.values())])
    count = len(counts) * len(cells)
    yield Group([Turn(USER, begins)], samples(), count, sum(counts) * len(cells), max(counts))


def many(grid: Grid, prompts: Prompts) -> Iterator[Group]:
    """A group for each text: a needle at each depth, and a question for each; `samples` texts of each length.

    Raises:
      ValueError: a length that no sample fits.
    """
    stack = Haystack(prompts, max(grid.lengths), len(grid.depths))
    words, draws = own_words().keys, random.Random(grid.seed)
    for length, text in itertools.product(grid.lengths, range(grid.samples)):
        hidden = {draws.choice(words): _number(draws) for _ in grid.depths}
        while len(hidden) < len(grid.depths):
            hidden[draws.choice(words)] = _number(draws)
        fixed = max(_fixed(prompts, hidden, key) for key in hidden)
        count = stack.fitting("needles", length, fixed, len(hidden))
        places = [stack.place(depth, count) for depth in grid.depths]
        texts = [[sentence] for sentence in stack.texts[:count]]
        needles = [filled(NEEDLE, key=key, value=value) for key, value in hidden.items()]
        for place, needle in reversed(list(zip(places, needles, strict=True))):
            texts.insert(place, needle)
        behind = [stack.tokens[count] - stack.tokens[place] for place in places]
        later = [sum(map(prompts.pieces.count, needles[number + 1 :])) for number in range(len(needles))]
        context = list(itertools.chain(*texts))
        samples = []
        for number, (key, depth) in enumerate(zip(hidden, grid.depths, strict=True)):
            facts = {"cell": depth, "depths": [stack.share(places[number], count)], "units": count}
            facts["distance"] = behind[number] + later[number]
            which = "needles", length, text * len(hidden) + number
            samples.append(_sample(prompts, which, context, hidden, key, facts))
        yield Group([Turn(USER, (BEFORE, *context))], samples, len(samples), length * len(samples), length)


def _number(draws: random.Random) -> str:
    return str(draws.randint(10**6, 10**7 - 1))


def _fixed(prompts: Prompts, hidden: dict[str, str], key: str) -> int:
    """Tokens of a prompt without its haystack, and of its answer."""
    needles = itertools.chain(*(filled(NEEDLE, key=other, value=value) for other, value in hidden.items()))
    texts = [BEFORE, *needles, *filled(AFTER, key=key), PREFIX.format(key=key)]
    return prompts.reserved + prompts.pieces.count(texts) + MAX_TOKENS


def _sample(
    prompts: Prompts, which: tuple[str, int, int], context: Sequence[str], hidden: dict[str, str], key: str, facts: dict
) -> Sample:
    """which: (task, length, number)."""
    task, length, number = which
    turn, prefix = Turn(USER, (BEFORE, *context, *filled(AFTER, key=key))), PREFIX.format(key=key)
    return Sample(
        task=task,
        number=number,
        length=length,
        size=prompts.reserved + prompts.pieces.count([*turn.pieces, prefix]) + MAX_TOKENS,
        turns=(turn,),
        prefix=prefix,
        answers=(hidden[key],),
        scorer="every",
        max_tokens=MAX_TOKENS,
        chance=CHANCE,
        facts={**facts, "needles": len(hidden), "distractors": len(hidden) - 1},
    )
