"""RULER's families in our words: what 200 samples of each say is counted here again, from their text alone."""

import collections
import random
import re
import string
import uuid

import pytest

from mm01_jax.data import prose
from mm01_jax.data.tokenizer import BytesTokenizer
from mm01_jax.evals.pieces import Pieces, filled
from mm01_jax.evals.ruler import families
from mm01_jax.evals.ruler.names import FAMILIES
from mm01_jax.evals.ruler.search import TooShort
from mm01_jax.evals.ruler.strings import OWN
from mm01_jax.evals.scores import SCORERS

COUNT, LENGTH, SHORT = 200, 9000, 2048
NEEDLE = re.compile(r"One of the secret (?:numbers|uuids) of (\S+) is: (\S+)\.(?=\s)")
# Needles, values asked for, and what keys and values look like.
NEEDLES = {
    "niah_single_1": (1, 1, "words", "numbers"),
    "niah_single_2": (1, 1, "words", "numbers"),
    "niah_single_3": (1, 1, "words", "uuids"),
    "niah_multikey_1": (4, 1, "words", "numbers"),
    "niah_multikey_2": (None, 1, "words", "numbers"),
    "niah_multikey_3": (None, 1, "uuids", "uuids"),
    "niah_multivalue": (4, 4, "words", "numbers"),
    "niah_multiquery": (4, 4, "words", "numbers"),
}
FORMS = {
    "words": r"[a-z]{4,10}-[a-z]{4,10}",
    "numbers": r"[1-9]\d{6}",
    "uuids": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
}


@pytest.fixture(scope="module")
def found():
    """(task, length) -> its samples."""
    pieces = Pieces(BytesTokenizer())
    return {
        (task, length): list(families.samples(task, length, count, pieces, seed=7))
        for task in FAMILIES
        for length, count in ((LENGTH, COUNT), (SHORT, 5))
    }


@pytest.mark.parametrize("task", FAMILIES)
def test_samples_fit_their_length_and_say_their_size(found, task):
    for length, count in ((LENGTH, COUNT), (SHORT, 5)):
        samples = found[task, length]
        assert [sample.number for sample in samples] == list(range(count))
        for sample in samples:
            said = len((sample.question + sample.prefix).encode())
            assert sample.size == said + sample.max_tokens <= length == sample.length
            assert sample.bytes == said
        assert len({sample.question for sample in samples}) == count


@pytest.mark.parametrize("task", FAMILIES)
def test_an_oracle_gets_everything_and_whoever_guesses_gets_chance(found, task):
    samples, draws = found[task, LENGTH], random.Random(1)
    score = SCORERS[samples[0].scorer]
    assert all(score(f"They are {', '.join(sample.answers)}.", sample.answers) == 1.0 for sample in samples)
    assert all(score(sample.prefix, sample.answers) == 0.0 for sample in samples if task != "cwe")
    guessed = sum(score(guess(task, draws), sample.answers) for sample in samples) / COUNT
    chance = samples[0].chance
    spread = (chance * (1 - chance) / COUNT) ** 0.5
    assert abs(guessed - chance) <= 4 * spread + 1 / COUNT


def guess(task: str, draws: random.Random) -> str:
    """An answer of the right form by somebody who has not read the text."""
    if task.startswith("qa"):
        modules = sorted({one.module for one in prose.described() if len(one.module) >= 5})
        return draws.choice(modules)
    if task == "cwe":
        return " ".join(draws.sample(prose.words(), 10))
    if task == "fwe":
        return " ".join("".join(draws.choices(string.ascii_lowercase, k=6)) for _ in range(3))
    if task == "vt":
        return " ".join("".join(draws.choices(string.ascii_uppercase, k=5)) for _ in range(5))
    if NEEDLES[task][3] == "uuids":
        return str(uuid.UUID(int=draws.getrandbits(128), version=4))
    return str(draws.randint(10**6, 10**7 - 1))


@pytest.mark.parametrize("task", NEEDLES)
def test_needles_are_as_many_as_published_and_stand_where_is_said(found, task):
    needles, asked, key_kind, value_kind = NEEDLES[task]
    depths = []
    for sample in found[task, LENGTH]:
        before, context = sample.question.split("\n", 1)
        context, question = context.rsplit("\n", 1)
        hidden = NEEDLE.findall(context + "\n")
        keys = re.findall(FORMS[key_kind], question)
        assert all(re.fullmatch(FORMS[key_kind], key) and re.fullmatch(FORMS[value_kind], v) for key, v in hidden)
        assert len(hidden) == sample.facts["distractors"] + asked
        assert needles in (None, len(hidden)) and len(sample.answers) == asked
        assert sorted(sample.answers) == sorted(value for key, value in hidden if key in keys)
        assert sample.prefix.count(keys[0]) == 1 and all(key in sample.prefix for key in keys)
        assert ("numbers" in before or "uuids" in before) == (asked > 1)
        depths += check_depths(sample, context)
    assert min(depths) < 0.1 and max(depths) > 0.9


def check_depths(sample, context: str) -> list[float]:
    """Where needles stand by counting what is before them, beside what the sample says."""
    if "\n" in context:  # a line is a unit of the haystack, or a needle
        lines = context.split("\n")
        units = len(lines) - sample.facts["needles"]
        places = [number for number, text in enumerate(lines) if any(answer in text for answer in sample.answers)]
        places = [place - number for number, place in enumerate(places)]
        assert sample.facts["units"] == units
        assert sample.facts["depths"] == [round(place / units, 4) for place in places]
        return sample.facts["depths"]
    starts = [match.start() for match in NEEDLE.finditer(context + " ")]
    ends = [match.end() for match in NEEDLE.finditer(context + " ")]
    texts = [context[end:start].strip() for end, start in zip([0, *ends], [*starts, len(context)], strict=True)]
    taken, places = 0, []
    for text in texts:  # a sentence of the library is a unit, and they come in their order
        while text:
            assert text.startswith(sentence := prose.sentences()[taken])
            text, taken = text[len(sentence) :].lstrip(), taken + 1
        places.append(taken)
    assert sample.facts["units"] == taken
    assert sample.facts["depths"] == [round(place / taken, 4) for place in places[:-1]]
    return sample.facts["depths"]


def test_a_chain_of_variables_has_four_hops_in_order_and_all_its_names_are_the_answer(found):
    for sample in found["vt", LENGTH]:
        example, text = sample.question.split("\n\n")[1:3][0], sample.question.rsplit("\n\n", 1)[1]
        lines = text.split("\n")
        chain = [line.strip() for line in lines if line.startswith("VAR ")]
        value = sample.question.rsplit(" ", 1)[1].rstrip("?")
        names = [chain[0].split()[1]]
        assert chain[0] == f"VAR {names[0]} = {value}" and len(value) == 5
        for line in chain[1:]:
            name, before = re.fullmatch(r"VAR ([A-Z]{5}) = VAR ([A-Z]{5})", line).groups()
            assert before == names[-1]
            names.append(name)
        assert tuple(names) == sample.answers and len(names) == 5
        assert sample.facts["units"] == len(lines) - 1 - 5  # the last line is the question
        places = [number for number, line in enumerate(lines) if line.startswith("VAR ")]
        units = sample.facts["units"]
        assert sample.facts["depths"] == [round((place - n) / units, 4) for n, place in enumerate(places)]
        assert len(set(re.findall(r"\b[A-Z]{3}\b", example)) - {"VAR"}) >= 4  # names of the example are shorter


def test_common_words_come_thirty_times_and_others_three(found):
    for length, common, others in ((LENGTH, 30, 3), (SHORT, 6, 1)):
        for sample in found["cwe", length]:
            listed = sample.question.rsplit("\n", 2)[1]
            numbers = [int(number) for number in re.findall(r"(\d+)\. ", listed)]
            assert numbers == list(range(1, len(numbers) + 1))
            counts = collections.Counter(re.findall(r"\d+\. (\S+)", listed))
            assert {word for word, count in counts.items() if count == common} == set(sample.answers)
            assert sorted(set(counts.values())) == [others, common] and len(sample.answers) == 10
            assert len(counts) == sample.facts["units"] and len(numbers) == sample.facts["words"]


def test_the_three_commonest_words_of_the_code_are_the_answer(found):
    for sample in found["fwe", LENGTH]:
        coded = sample.question.partition("come. ")[2].partition("\nQuestion")[0].split(" ")
        counts = collections.Counter(coded)
        ranked = [word for word, _ in counts.most_common(4)]
        assert ranked[0] == "..." and tuple(ranked[1:]) == sample.answers
        assert len(coded) == sample.facts["words"]
        assert counts["..."] > 3 * counts[ranked[1]]  # 1 / 2^-2 is 4


@pytest.mark.parametrize(("task", "needed"), [("qa_1", 1), ("qa_2", 2)])
def test_one_document_or_two_of_all_have_the_answer(found, task, needed):
    for sample in found[task, LENGTH]:
        documents = re.split(r"\n\nDocument \d+:\n|Document 1:\n", sample.question.split("\n\nQuestion")[0])[1:]
        name = re.search(r"(?:function|class|that) (\w+)(?: is made from)?\?", sample.question)[1]
        said = [text for text in documents if text.startswith(f"{name}: ")]
        assert len(said) == 1 and len(documents) == sample.facts["units"] == sample.facts["distractors"] + needed
        if task == "qa_2":
            base = re.search(r"made from (\w+)", said[0])[1]
            assert sample.answers[0] not in said[0]
            said = [text for text in documents if text.startswith(f"{base}: ")]
        assert f"of the module {sample.answers[0]}." in said[0]
        depth = [round(documents.index(text) / len(documents), 4) for text in said]
        assert depth[0] in sample.facts["depths"] and len(sample.facts["depths"]) == needed


@pytest.mark.parametrize("task", FAMILIES)
def test_a_length_that_nothing_fits_is_refused_with_what_would_fit(task):
    with pytest.raises(TooShort, match=rf"^{task}: got length 200; allowed: "):
        list(families.samples(task, 200, 1, Pieces(BytesTokenizer())))


def test_the_same_seed_gives_the_same_samples_and_another_one_others():
    first, again, other = (
        list(families.samples("niah_multikey_2", SHORT, 3, Pieces(BytesTokenizer()), seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again and first != other


def test_pieces_of_a_pattern_are_its_text():
    fields = {"a": "x", "b": "y z"}
    for pattern in ("{a} and {b}.", "in {a}", "{a}{b} ", " at {b} "):
        pieces = filled(pattern, **fields)
        assert "".join(pieces) == pattern.format(**fields)
        assert all(pieces) and not any(piece.endswith(" ") for piece in pieces[:-1])
    said = OWN.families["niah"]
    assert "".join(filled(said.before, type_needle_v="numbers")) == said.before.format(type_needle_v="numbers")
