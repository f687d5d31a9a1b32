"""Documents that teach to find: what they ask for they have said, in wordings that no evaluation has."""

import re

import numpy as np
import pytest

from mm01_jax.config import DataConfig
from mm01_jax.data import recall
from mm01_jax.data.dataset import open_dataset
from mm01_jax.data.sources import find_shards
from mm01_jax.evals import copies, needle
from mm01_jax.evals.ruler.strings import OWN

NUMBER = 300


def patterns(wordings) -> list[tuple[re.Pattern, re.Pattern]]:
    """What is said and what is asked, to be looked for; the key and the value are groups."""
    fields = {r"\{key\}": r"(?P<key>[a-z]+-[a-z]+)", r"\{value\}": r"(?P<value>[0-9a-f-]{7,36})"}

    def pattern(text: str) -> re.Pattern:
        text = re.escape(text.strip())
        for name, group in fields.items():
            text = text.replace(name, group)
        return re.compile(text)

    return [tuple(map(pattern, wording)) for wording in wordings]


def facts(pattern: re.Pattern, text: str) -> list[tuple[str, str]]:
    return [(match["key"], match["value"]) for match in pattern.finditer(text)]


@pytest.mark.parametrize("size", [600, 4096])
def test_what_is_asked_was_said_before_and_a_document_fits_its_size(size):
    kinds = dict.fromkeys(("needles", "lines", "twice"), 0)
    for number in range(NUMBER):
        text = recall.document(number, size)
        assert text == recall.document(number, size)
        assert len(text.encode()) == size - 1
        *_, first, second = text.split("\n")
        if first == second:
            kinds["twice"] += 1
            continue
        found = []
        for kind, wordings in (("needles", recall.WORDINGS), ("lines", recall.LINES)):
            for said, asked in patterns(wordings):
                begins = re.compile(rf"\n(?:{asked.pattern})(?:\n|$)")
                told, wanted = facts(said, text), facts(begins, text.replace("\n", "\n\n"))
                if wanted and set(wanted) <= set(told) and len(told) >= len(wanted):
                    found.append((kind, told, wanted))
        assert found, text
        kinds[found[0][0]] += 1
    assert min(kinds.values()) > NUMBER / 12 and kinds["needles"] > NUMBER / 3


def words_of(text: str) -> str:
    """A wording without its fields."""
    return " ".join(re.sub(r"\{\w+\}", "*", text).split()).strip(" .*").lower()


def test_no_wording_is_one_of_the_evaluations():
    evaluated = [needle.NEEDLE, needle.AFTER, needle.PREFIX, copies.LINE, copies.AFTER, copies.PREFIX, OWN.needle]
    evaluated += [text for said in OWN.families.values() for text in said]
    held_out = {words_of(text) for text in evaluated}
    taught = {words_of(text) for wording in (*recall.WORDINGS, *recall.LINES) for text in wording}
    assert not taught & held_out
    for number in range(NUMBER):
        text = recall.document(number, 2048).lower()
        assert not any(words in text for words in ("secret number", "secret uuid", "the code of"))


def test_a_run_s_rows_are_made_of_the_documents(monkeypatch):
    monkeypatch.setattr(recall, "BYTES", 2**16)
    dataset = open_dataset(DataConfig(source="recall:1k", held_out=0.2), 512, 320)
    assert len(dataset.corpus) == 64 and dataset.manifest["python"]
    row = dataset.train.row(3)
    text = bytes(int(token) for token in row["tokens"] if token < 256).decode(errors="ignore")
    documents = {recall.document(number, 1024) for number in range(64)}
    assert any(part in document for part in [text[:200], text[-200:]] for document in documents)
    assert not np.array_equal(row["tokens"], dataset.held_out.row(0)["tokens"])


def test_rows_of_whole_multiples_cut_no_document(monkeypatch):
    monkeypatch.setattr(recall, "BYTES", 2**16)
    rows = open_dataset(DataConfig(source="recall:512:twice", held_out=0.2), 1024, 320).train
    for number in range(200):  # more than an epoch
        row = rows.row(number)
        assert np.array_equal(row["positions"], np.tile(np.arange(512), 2))
        assert [*row["tokens"][511::512]] == [256, 256]
        for document in row["tokens"].reshape(2, 512):
            *_, first, second = bytes(document[:-1].tolist()).split(b"\n")
            assert first == second and len(first) > 200


@pytest.mark.parametrize("source", ["recall:", "recall:4k:once", "recall:4g", "recall:99", "recall:17m"])
def test_a_size_that_is_none_is_refused_in_one_line(source):
    with pytest.raises(ValueError, match=r"data.source='recall:.*allowed: recall:SIZE.*nearest: recall:4k$"):
        find_shards(source, "text")
