"""RULER's variable tracking: a chain of assignments between lines of noise, and every name of it asked for.

    VAR AAAAA = 12345 … VAR BBBBB = VAR AAAAA … VAR CCCCC = VAR BBBBB …

An example with its answer stands in front, of shorter names.
"""

import dataclasses
import string
from collections.abc import Iterator
from typing import NamedTuple

from mm01_jax.evals.pieces import filled, joined
from mm01_jax.evals.ruler.search import SHORT, Asked, Drawn, Family, fit, samples
from mm01_jax.evals.sample import Sample

HOPS = 4  # of a chain; it has a name more
MAX_TOKENS = 30
_EXAMPLE_LENGTH, _EXAMPLE_STEP = 500, 5  # tokens of the example at most; lines of noise
_EXAMPLE_VALUE = "12345"
_LETTERS = string.ascii_uppercase


def generate(asked: Asked) -> Iterator[Sample]:
    """Samples of `vt`."""
    maker = _Maker(asked)
    chance = 1 / len(_LETTERS) ** 5
    example = maker.example(Family("every", 0, _EXAMPLE_STEP, chance, first=_EXAMPLE_STEP))
    step = 5 if asked.length < SHORT else 10
    family = Family("every", MAX_TOKENS, step, chance, first=step)
    extra = asked.pieces.count([example.text]) + MAX_TOKENS
    units = fit(asked, maker.draw, family, asked.limit, extra)

    def make(_: int, used: int) -> Drawn:
        drawn = maker.draw(used)
        return drawn._replace(context=[*maker.renamed(example), "\n", *drawn.context])

    return samples(asked, make, family, units)


class _Example(NamedTuple):
    """The text in front, and the names at its end."""

    text: str
    names: list[str]


class _Maker(NamedTuple):
    asked: Asked

    def draw(self, units: int, letters: int = 5) -> Drawn:
        """A chain in so many lines of noise."""
        names, lines, value = self._chain(letters)
        noise = [[self.asked.strings.noise]] * units
        places = sorted(self.asked.draws.python.sample(range(units), len(lines)))
        for number, (place, line) in enumerate(zip(places, lines, strict=True)):
            noise.insert(place + number, [line])  # it now stands where so many lines of the chain are before it
        said = self.asked.strings.families["variable_tracking"]
        fields = {"query": value, "num_v": str(HOPS + 1)}
        pieces = [*filled(said.before, **fields), *joined(noise, "\n"), *filled(said.after, **fields)]
        depths = [round(place / units, 4) for place in places]
        facts = {"units": units, "hops": HOPS, "distractors": 0, "depths": depths}
        return Drawn(pieces, said.prefix.format(**fields), tuple(names), facts)

    def _chain(self, letters: int) -> tuple[list[str], list[str], str]:
        """(names, lines, value)."""
        draws = self.asked.draws
        names = list(dict.fromkeys(self._name(letters) for _ in range(HOPS + 1)))
        while len(names) < HOPS + 1:
            names = list(dict.fromkeys([*names, self._name(letters)]))
        value = _EXAMPLE_VALUE if letters == 3 else str(draws.numpy.randint(10000, 99999))
        lines = [f"VAR {names[0]} = {value}"]
        lines += [f"VAR {name} = VAR {before} " for before, name in zip(names, names[1:], strict=False)]
        return names, lines, value

    def _name(self, letters: int) -> str:
        return "".join(self.asked.draws.python.choices(_LETTERS, k=letters))

    def example(self, family: Family) -> _Example:
        """As long as fits; where the tokenizer makes so many tokens that nothing fits, as short as there is."""
        limit = _EXAMPLE_LENGTH - self.asked.reserved
        asked = dataclasses.replace(self.asked, length=_EXAMPLE_LENGTH, count=1)
        units = fit(asked, lambda units: self.draw(units, 3), family, limit)
        drawn = self.draw(units, 3)
        while self.asked.pieces.count(drawn.pieces) > limit and units > family.step:
            units -= family.step
            drawn = self.draw(units, 3)
        return _Example("".join(drawn.pieces) + " " + " ".join(drawn.answers) + "\n", list(drawn.answers))

    def renamed(self, example: _Example) -> list[str]:
        """The example with other names and another value, line by line."""
        text = example.text
        for name in example.names:
            text = text.replace(name, self._name(len(name)))
        text = text.replace(_EXAMPLE_VALUE, str(self.asked.draws.numpy.randint(10000, 99999)))
        first, *rest = text.split("\n")
        return [first, *(f"\n{line}" for line in rest)]
