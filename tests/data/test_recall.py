"""Documents that teach to find: what they ask for they have said, and answers alone are learnt."""

import json
import re

import numpy as np
import pytest

from mm01_jax.config import DataConfig
from mm01_jax.data import recall
from mm01_jax.data.dataset import open_dataset
from mm01_jax.data.sources import find_shards
from mm01_jax.data.tokenizer import bytes_json
from mm01_jax.evals import copies, needle
from mm01_jax.evals.ruler.strings import OWN

NUMBER = 300


def text_of(pieces: list[recall.Piece]) -> str:
    return "".join(text for text, _ in pieces)


@pytest.mark.parametrize("size", [256, 600, 4096])
def test_what_is_learnt_was_said_before_and_a_document_fits_its_size(size):
    kinds = {"facts": 0, "codes": 0, "twice": 0}
    for number in range(NUMBER):
        pieces = recall.pieces_of(number, size)
        assert pieces == recall.pieces_of(number, size)
        assert len(text_of(pieces).encode()) == size - 1
        told = pieces[0].text  # of facts it is all that is told, with filler perhaps before it
        for piece, before in zip(pieces[1:], pieces, strict=False):
            if piece.learnt:
                assert piece.text in told + "\n" or piece.text.strip() in told.split("\n")
                assert not before.learnt
            else:
                told += piece.text
        last = pieces[-1]
        assert last.learnt
        kind = "twice" if len(last.text) > size // 4 and "-" not in last.text else "facts"
        kinds["codes" if kind == "facts" and last.text.count("-") == 4 else kind] += 1
    assert min(kinds.values()) > NUMBER / 12 and kinds["facts"] > NUMBER / 4, kinds


def test_of_the_kind_that_says_a_stretch_twice_half_is_learnt():
    for number in range(NUMBER):
        pieces = recall.pieces_of(number, 512, "twice")
        first, second = text_of(pieces).split("\n")[-2:]
        assert first == second == pieces[-1].text and pieces[-1].learnt and len(second) > 200


def test_a_question_names_its_key_and_other_facts_are_in_the_way():
    several = 0
    for number in range(NUMBER):
        pieces = recall.pieces_of(number, 2048)
        questions = [piece.text for piece in pieces[1:] if not piece.learnt and "-" in piece.text]
        several += len(questions) > 4
        assert len(set(questions)) == len(questions)
    assert several > NUMBER / 8


def test_wordings_are_the_documents_own_and_none_is_one_of_the_evaluations():
    taught = {recall._wording(recall.random.Random(number)) for number in range(NUMBER)}
    assert len(taught) > 0.99 * NUMBER
    evaluated = [needle.NEEDLE, needle.AFTER, needle.PREFIX, copies.LINE, copies.AFTER, copies.PREFIX, OWN.needle]
    evaluated += [text for said in OWN.families.values() for text in said]
    held_out = {" ".join(text.split("{")[0].lower().split()) for text in evaluated} - {""}
    for number in range(NUMBER):
        text = " ".join(text_of(recall.pieces_of(number, 2048)).lower().split())
        assert not [words for words in held_out if words in text and len(words.split()) > 2]


def test_codes_are_uuids_in_more_of_the_documents():
    found = {}
    for kind in ("", "codes"):
        texts = [text_of(recall.pieces_of(number, 1024, kind)) for number in range(NUMBER)]
        codes = [re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text) for text in texts]
        found[kind] = sum(map(bool, codes)) / NUMBER
    assert abs(found[""] - 0.9 * 0.25) < 0.08 and abs(found["codes"] - 0.9 * 0.4) < 0.08


@pytest.mark.parametrize(("tokenizer", "kind"), [("bytes", ""), ("file", ""), ("bytes", ":twice"), ("bytes", ":codes")])
def test_rows_weigh_the_answers_alone_and_cut_no_document(monkeypatch, tmp_path, tokenizer, kind):
    monkeypatch.setattr(recall, "BYTES", 2**16)
    name = tokenizer
    if tokenizer == "file":
        pytest.importorskip("tokenizers")
        name = str(tmp_path / "tokenizer.json")
        (tmp_path / "tokenizer.json").write_text(json.dumps(bytes_json()))
    dataset = open_dataset(DataConfig(source=f"recall:512{kind}", held_out=0.2, tokenizer=name), 1024, 320)
    assert len(dataset.corpus) == 128 and dataset.manifest["python"]
    answers = {}
    for number in range(128):
        pieces = recall.pieces_of(number, 512, kind[1:])
        answers[text_of(pieces)] = "".join(text for text, learnt in pieces if learnt)
    for number in range(60):  # more than an epoch
        row = dataset.train.row(number)
        assert np.array_equal(row["positions"], np.tile(np.arange(512), 2))
        for half in (slice(0, 512), slice(512, 1024)):
            text = dataset.tokenizer.decode(row["tokens"][half][:-1])
            learnt = row["targets"][half][row["weights"][half] == 1.0]
            assert learnt[-1] == dataset.tokenizer.end_of_document
            assert dataset.tokenizer.decode(learnt[:-1]) == answers[text]
            assert set(row["weights"][half]) == {0.0, 1.0} and row["weights"][half][-1] == 0.0
    assert not np.array_equal(dataset.train.row(3)["tokens"], dataset.held_out.row(0)["tokens"])


@pytest.mark.parametrize("source", ["recall:", "recall:4k:once", "recall:4g", "recall:99", "recall:17m"])
def test_a_size_that_is_none_is_refused_in_one_line(source):
    with pytest.raises(ValueError, match=r"data.source='recall:.*allowed: recall:SIZE.*nearest: recall:4k$"):
        find_shards(source, "text")
