"""The held-out split: whole documents, by content, on one side only."""

import json

import numpy as np
import pytest

from mm01_jax.config import DataConfig
from mm01_jax.data.dataset import open_dataset
from mm01_jax.data.shuffle import held_out_documents, held_out_ranks


def jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def texts_of_one_epoch(rows):
    """The documents whose tokens lie in the first epoch of a stream, as text."""
    length = rows.tokens_per_epoch
    made = [rows.row(i) for i in range(-(-length // rows.sequence_length))]
    stream = np.concatenate([row["tokens"] for row in made])[:length]
    return [
        bytes(document.tolist()).decode()
        for document in np.split(stream, np.flatnonzero(stream == 256) + 1)[:-1]
        for document in [document[:-1]]
    ]


def test_no_held_out_document_is_ever_in_a_training_row_and_none_is_lost(tmp_path):
    texts = [f"document {i} " * (i % 7 + 1) for i in range(400)]
    dataset = open_dataset(DataConfig(source=jsonl(tmp_path / "a.jsonl", texts), held_out=0.2), 32, 257)
    trained, held_out = texts_of_one_epoch(dataset.train), texts_of_one_epoch(dataset.held_out.stream)
    assert not set(trained) & set(held_out)
    assert sorted(trained + held_out) == sorted(texts)
    assert 50 < len(held_out) < 110  # 80 expected, standard deviation 8


def test_no_held_out_text_of_the_standard_library_is_in_a_training_row():
    dataset = open_dataset(DataConfig(), 4096, 257)
    trained, held_out = set(texts_of_one_epoch(dataset.train)), set(texts_of_one_epoch(dataset.held_out.stream))
    assert trained and held_out and not trained & held_out


def test_copies_of_a_text_are_on_one_side(tmp_path):
    texts = [f"text {i % 50}" for i in range(200)]
    dataset = open_dataset(DataConfig(source=jsonl(tmp_path / "a.jsonl", texts), held_out=0.5), 32, 257)
    assert not set(texts_of_one_epoch(dataset.train)) & set(texts_of_one_epoch(dataset.held_out.stream))


def test_documents_added_later_do_not_move_the_others():
    digests = np.random.default_rng(0).integers(0, 2**64, (1000, 2), np.uint64)
    few, all_of_them = (held_out_documents(held_out_ranks(some, 3), 0.1) for some in (digests[:600], digests))
    assert (few == all_of_them[:600]).all()


def test_seeds_hold_out_different_documents():
    digests = np.random.default_rng(0).integers(0, 2**64, (1000, 2), np.uint64)
    assert len({held_out_documents(held_out_ranks(digests, seed), 0.1).tobytes() for seed in range(10)}) == 10


@pytest.mark.parametrize("fraction", [1e-9, 0.02, 0.5, 1 - 1e-9])
def test_two_documents_are_one_to_train_on_and_one_to_evaluate_on(tmp_path, fraction):
    dataset = open_dataset(DataConfig(source=jsonl(tmp_path / "a.jsonl", ["one", "two"]), held_out=fraction), 8, 257)
    both = [texts_of_one_epoch(dataset.train), texts_of_one_epoch(dataset.held_out.stream)]
    assert sorted(both) == [["one"], ["two"]]


def test_one_text_cannot_be_split_and_the_message_says_what_to_do(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", ["same", "same"])
    with pytest.raises(ValueError, match="data.held_out=0.02 needs two different documents.*set data.held_out=0"):
        open_dataset(DataConfig(source=source), 8, 257)
    assert open_dataset(DataConfig(source=source, held_out=0.0), 8, 257).held_out is None
