"""RULER's questions about documents, on what the standard library says of its functions and classes.

`qa_1` asks for what one document says, `qa_2` for what follows from two; all others are in the way.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from mm01_jax.data import prose
from mm01_jax.evals.pieces import filled
from mm01_jax.evals.ruler.search import Asked, Drawn, Family, fit, samples
from mm01_jax.evals.sample import Sample

MAX_TOKENS = 32
_SHORTEST = 5  # letters of a module's name: a shorter one is found in too many words
_STEP = 10


class Question(NamedTuple):
    """needed: the documents that it takes, by their numbers."""

    query: str
    answers: tuple[str, ...]
    needed: tuple[int, ...]


class Corpus(NamedTuple):
    """chance: 1 / the number of answers there are."""

    documents: tuple[str, ...]
    questions: tuple[Question, ...]
    chance: float


def generate(asked: Asked) -> Iterator[Sample]:
    """Samples of `qa_1` or `qa_2`."""
    corpus = _one_document() if asked.task == "qa_1" else _two_documents()
    family = Family("some", MAX_TOKENS, _STEP, corpus.chance, first=_STEP)
    questions = list(corpus.questions)
    asked.draws.shuffle(questions)

    def make(number: int, units: int) -> Drawn:
        return _draw(asked, corpus, questions[number % len(questions)], units)

    units = fit(asked, lambda units: make(0, units), family, asked.limit, MAX_TOKENS)
    return samples(asked, make, family, units)


def _draw(asked: Asked, corpus: Corpus, question: Question, units: int) -> Drawn:
    documents = len(corpus.documents)
    if units < documents:
        others = [number for number in range(documents) if number not in question.needed]
        shown = [*question.needed, *asked.draws.python.sample(others, units - len(question.needed))]
    else:
        shown = list(itertools.islice(itertools.cycle(range(documents)), units))
    asked.draws.shuffle(shown)
    pieces = []
    for place, number in enumerate(shown, 1):
        pieces += ["\n\nDocument" if place > 1 else "Document", f" {place}:", f"\n{corpus.documents[number]}"]
    said = asked.strings.families["qa"]
    depths = [round(shown.index(number) / units, 4) for number in question.needed]
    facts = {"units": units, "distractors": units - len(question.needed), "depths": sorted(depths)}
    context = [*filled(said.before), *pieces, *filled(said.after, query=question.query)]
    return Drawn(context, said.prefix, question.answers, facts)


@functools.cache
def _one_document() -> Corpus:
    known = [one for one in prose.described() if len(one.module) >= _SHORTEST]
    documents = tuple(f"{one.name}: {_KINDS[one.kind]} of the module {one.module}. {one.said}" for one in known)
    questions = tuple(
        Question(f"Which module has the {_KINDS[one.kind]} {one.name}?", (one.module,), (number,))
        for number, one in enumerate(known)
    )
    return Corpus(documents, questions, 1 / len({one.module for one in known}))


@functools.cache
def _two_documents() -> Corpus:
    known = [one for one in prose.described() if one.kind == "class"]
    places = {one.name: number for number, one in enumerate(known)}
    module_of = {one.name: known[places[one.base]].module for one in known if one.base in places}
    bases = {one.base for one in known if one.name in module_of}
    documents = tuple(
        f"{one.name}: a class{f' made from {one.base}' if one.base else ''}"
        f"{f', of the module {one.module}' if one.name in bases else ''}. {one.said}"
        for one in known
    )
    questions = tuple(
        Question(f"Which module has the class that {name} is made from?", (module,), (place, places[known[place].base]))
        for name, module in module_of.items()
        # No shorter way: the first document does not have the answer.
        if len(module) >= _SHORTEST and module not in documents[place := places[name]]
    )
    return Corpus(documents, questions, 1 / len({question.answers for question in questions}))


_KINDS = {"def": "function", "class": "class"}
