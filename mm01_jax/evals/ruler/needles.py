"""RULER's needles: keys with values between other text, and the values of some keys asked for.

A haystack is noise (a few sentences again and again), real text, or other needles, which is the hardest.
"""

import itertools
import uuid
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mm01_jax.evals.pieces import filled, joined
from mm01_jax.evals.ruler.names import NEEDLES, Needles
from mm01_jax.evals.ruler.search import SHORT, Asked, Drawn, Family, fit, samples
from mm01_jax.evals.sample import Sample

DEPTHS = [int(depth) for depth in np.round(np.linspace(0, 100, 40))]  # percent
MAX_TOKENS = 128


CHANCE = {"numbers": 1 / 9_000_000, "uuids": 2.0**-122}


def generate(asked: Asked, words: Sequence[str], sentences: Sequence[str]) -> Iterator[Sample]:
    """Samples of one of NEEDLES.

    Args:
      words: keys are drawn from. sentences: of the haystack of real text, repeated where it is too short.
    """
    kind = NEEDLES[asked.task]
    step = 5 if asked.length < SHORT else 25
    family = Family("every", MAX_TOKENS, step, CHANCE[kind.value_kind], first=step)
    maker = _Maker(kind, asked, words, sentences)
    units = fit(asked, maker.draw, family, asked.limit, MAX_TOKENS)
    return samples(asked, lambda _, used: maker.draw(used), family, units)


class _Maker(NamedTuple):
    kind: Needles
    asked: Asked
    words: Sequence[str]
    sentences: Sequence[str]

    def draw(self, units: int) -> Drawn:
        """A sample with so many units of haystack."""
        kind, random = self.kind, self.asked.draws.python
        keys, values, needles = [], [], []
        for _ in range(kind.keys):
            keys.append(self._random(kind.key_kind))
            values.append([])
            for _ in range(kind.values):
                values[-1].append(self._random(kind.value_kind))
                needles.append(self._needle(keys[-1], values[-1][-1]))
        self.asked.draws.shuffle(needles)
        context, places = self._hidden(needles, units)
        chosen = random.sample(range(kind.keys), kind.asked)
        answers = tuple(value for index in chosen for value in values[index])
        facts = {
            "units": units,
            "needles": len(needles),
            "distractors": len(needles) - len(answers) + (units if kind.haystack == "needles" else 0),
            "depths": [round(place / max(units, 1), 4) for place in sorted(places)],
        }
        return self._said(context, [keys[index] for index in chosen], answers, facts)

    def _said(self, context: list[str], keys: list[str], answers: tuple[str, ...], facts: dict) -> Drawn:
        said, values = self.asked.strings.families["niah"], self.kind.value_kind
        if self.kind.asked * self.kind.values == 1:
            said, values = said.singular, values[:-1]
        query = ", ".join(keys[:-1]) + ", and " + keys[-1] if len(keys) > 1 else keys[0]
        fields = {"type_needle_v": values, "query": query}
        pieces = [*filled(said.before, **fields), *context, *filled(said.after, **fields)]
        return Drawn(pieces, said.prefix.format(**fields), answers, facts)

    def _hidden(self, needles: list[list[str]], units: int) -> tuple[list[str], list[int]]:
        """The context, and before which unit each needle stands."""
        random = self.asked.draws.python
        if self.kind.haystack == "text":
            places = sorted(int(units * (depth / 100)) for depth in random.sample(DEPTHS, len(needles)))
            texts = [[sentence] for sentence in itertools.islice(itertools.cycle(self.sentences), units)]
            for place, needle in reversed(list(zip(places, needles, strict=True))):
                texts.insert(place, needle)
            return list(joined(texts, " ")), places
        if self.kind.haystack == "noise":
            texts = [[self.asked.strings.noise]] * units
        else:
            kinds = self.kind.key_kind, self.kind.value_kind
            texts = [self._needle(*map(self._random, kinds)) for _ in range(units)]
        places = sorted(random.sample(range(units), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            texts.insert(place, needle)
        return list(joined(texts, "\n")), places

    def _needle(self, key: str, value: str) -> list[str]:
        return filled(self.asked.strings.needle, type_needle_v=self.kind.value_kind, key=key, value=value)

    def _random(self, kind: str) -> str:
        random = self.asked.draws.python
        if kind == "numbers":
            return str(random.randint(10**6, 10**7 - 1))
        if kind == "words":
            return random.choice(self.words)
        return str(uuid.UUID(int=random.getrandbits(128), version=4))
