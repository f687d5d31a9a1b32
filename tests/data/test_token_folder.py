"""A folder of tokens gives the rows of the text that it was made of, or is refused by what is wrong with it."""

import dataclasses
import gc
import itertools
import json
import pathlib
import shutil
import tracemalloc

import numpy as np
import pytest

from mm01_jax.config import DataConfig
from mm01_jax.config.resume import may_change, resume_problems
from mm01_jax.data import token_files
from mm01_jax.data.dataset import check_unchanged, open_dataset
from mm01_jax.data.pipeline import batches
from mm01_jax.data.text import DataError
from mm01_jax.data.token_files import INDEX, MANIFEST, ids_digest
from mm01_jax.data.token_folder import TokenFolder
from tests import small
from tests.data.text_folder import VOCABULARY, tokenized, write_texts, write_tokenizer

S = 64


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a source, a tokenizer, and the source's tokens: of the tokenizer, and as bytes."""
    folder = tmp_path_factory.mktemp("tokens")
    write_texts(folder / "source")
    words = write_tokenizer(folder / "words")
    tokenized(folder / "source", words, folder / "tokens")
    tokenized(folder / "source", "bytes", folder / "bytes")
    return folder


@pytest.fixture
def damaged(place, tmp_path):
    """A copy of the tokens, to be damaged."""
    return pathlib.Path(shutil.copytree(place / "tokens", tmp_path / "tokens"))


def opened(place, source, tokenizer=None, **more):
    words = tokenizer or str(place / "words" / "tokenizer.json")
    return open_dataset(
        DataConfig(source=str(source), tokenizer=words, **({"held_out": 0.2} | more)), S, VOCABULARY, log=lambda _: None
    )


def assert_rows_equal(a, b, count):
    for index in range(count):
        first, second = a.row(index), b.row(index)
        assert first.keys() == second.keys()
        for name, values in first.items():
            assert values.dtype == second[name].dtype and (values == second[name]).all(), (index, name)


@pytest.mark.parametrize("kind", ["tokens", "bytes"])
def test_rows_of_tokens_are_those_of_the_text_bit_for_bit(place, kind):
    tokenizer = "bytes" if kind == "bytes" else None
    text, tokens = opened(place, place / "source", tokenizer), opened(place, place / kind, tokenizer)
    assert tokens.held_out.num_rows == text.held_out.num_rows > 2
    assert_rows_equal(text.held_out, tokens.held_out, text.held_out.num_rows + 1)
    assert_rows_equal(text.train, tokens.train, 3 * text.train.tokens_per_epoch // S)
    assert tokens.targets_per_byte == text.targets_per_byte
    assert tokens.manifest | {"source": ""} == text.manifest | {"source": ""}


def test_the_ids_of_a_large_vocabulary_are_kept_whole(tmp_path):
    write_tokenizer(tmp_path)
    words = json.loads((tmp_path / "tokenizer.json").read_text())
    words["model"]["vocab"]["far"] = 70_000
    words["model"]["merges"] += [["f", "a"], ["fa", "r"]]
    words["model"]["vocab"]["fa"] = 69_999
    (tmp_path / "tokenizer.json").write_text(json.dumps(words))
    (tmp_path / "a.txt").write_text("far")
    made = tokenized(tmp_path / "a.txt", str(tmp_path / "tokenizer.json"), tmp_path / "tokens")
    assert made.dtype == "uint32"
    assert TokenFolder(str(tmp_path / "tokens")).tokens(0).tolist() == [70_000]


def test_a_run_may_change_between_text_and_its_tokens_and_to_no_other_data(place, tmp_path):
    text, tokens = opened(place, place / "source"), opened(place, place / "tokens")
    for saved, now in ((text, tokens), (tokens, text)):
        check_unchanged(json.loads(json.dumps(saved.manifest)), now.manifest)
    other = write_texts(tmp_path / "other")
    (other / "b0.txt").write_text("another text")
    tokenized(other, str(place / "words" / "tokenizer.json"), tmp_path / "tokens")
    with pytest.raises(DataError, match="changed: b0.txt"):
        check_unchanged(text.manifest, opened(place, tmp_path / "tokens").manifest)
    config = small.config(place / "source")
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, source=str(place / "tokens")))
    assert may_change("data.source") and resume_problems(config, moved) == []


def test_two_processes_read_disjoint_rows_that_make_up_the_batch(place):
    rows = opened(place, place / "tokens").train

    def first(index, count):
        found = itertools.islice(batches(rows, 5, lambda step: 4, index, count, vocab_size=VOCABULARY), 4)
        return [(row, batch.tokens) for row, batch in found]

    whole, parts = first(0, 1), [first(0, 2), first(1, 2)]
    for (_, tokens), (_, a), (_, b) in zip(whole, *parts, strict=True):
        assert (np.concatenate([a, b]) == tokens).all()
    assert [row for row, _ in whole] == [9, 13, 17, 21]


def test_opening_reads_no_tokens_and_a_row_only_those_that_it_has(place, monkeypatch):
    read, kept = [], TokenFolder._checked
    monkeypatch.setattr(TokenFolder, "_checked", lambda self, one, *a: read.append(one) or kept(self, one, *a))
    rows = opened(place, place / "tokens").train
    assert read == []
    segments = len(set(rows.row(7)["segments"].tolist()))
    assert segments <= len(read) <= segments + 1


def test_a_document_takes_24_bytes_of_memory_with_its_place_in_an_epoch(tmp_path):
    documents = 20_000
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{number}"}}\n' for number in range(documents)))
    tokenized(tmp_path / "a.jsonl", "bytes", tmp_path / "tokens", shard_bytes=1 << 20)
    opened(tmp_path, tmp_path / "tokens", "bytes").train.row(0)  # what is imported at first
    tracemalloc.start()
    try:
        data = opened(tmp_path, tmp_path / "tokens", "bytes")
        data.train.row(0)
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(data.corpus) == documents and 12 * documents < taken < 24 * documents + (64 << 10)


def test_a_document_says_which_text_it_was(place):
    folder = TokenFolder(str(place / "tokens"))
    found = [folder.source(document) for document in range(len(folder))]
    assert found[0] == ("a.arrayrecord", 0) and found[61] == ("b1.txt", 0)
    offsets = [key for name, key in found if name == "c.jsonl"]
    raw = (place / "source" / "c.jsonl").read_bytes()
    assert [raw[key : key + 16] for key in offsets[:2]] == [b'{"text": "line 0', b'{"text": "line 1']
    assert folder.label(61).endswith("tokens-00001.arrayrecord document 1")


def change_manifest(folder, **values):
    plain = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(plain | values))


def change_shard(folder, place: int, value: int):
    shards = json.loads((folder / MANIFEST).read_text())["shards"]
    shards[0][place] = value
    change_manifest(folder, shards=shards)


def rewrite(folder, record: bytes):
    """The first shard with one document, everything said of it made to fit."""
    import hashlib

    from array_record.python.array_record_module import ArrayRecordWriter

    paths = token_files.paths(folder, 0)
    writer = ArrayRecordWriter(str(paths.tokens), "group_size:1")
    writer.write(record)
    writer.close()
    row = np.zeros(1, INDEX)
    row["tokens"], row["size"], row["ids"], row["text"] = len(record) // 2, 9, ids_digest(record), 7
    paths.index.write_bytes(row.tobytes())
    shards = json.loads((folder / MANIFEST).read_text())["shards"]
    before = shards[0]
    digest = hashlib.sha256(row.tobytes()).hexdigest()
    shards[0] = [1, len(record) // 2, paths.tokens.stat().st_size, before[3], digest]
    indexes = [
        np.fromfile(token_files.paths(folder, number).index, INDEX)
        for number in range(len(shards))
        if shards[number][0]
    ]
    totals = {"documents": sum(s[0] for s in shards), "tokens": sum(s[1] for s in shards)}
    text_bytes = int(sum(index["size"].sum() for index in indexes))
    change_manifest(folder, shards=shards, text_bytes=text_bytes, dropped=0, documents_dropped=0, **totals)


DAMAGES = {
    "missing": (lambda f: (f / "tokens-00001.arrayrecord").unlink(), "tokens-00001.arrayrecord is missing"),
    "no index": (lambda f: (f / "tokens-00001.index").unlink(), "tokens-00001.index is missing"),
    "doubled": (
        lambda f: shutil.copy(f / "tokens-00001.arrayrecord", f / "tokens-00099.arrayrecord"),
        "tokens-00099.arrayrecord is no file of this tokenization",
    ),
    "cut": (
        lambda f: (f / "tokens-00001.arrayrecord").write_bytes((f / "tokens-00001.arrayrecord").read_bytes()[:-1]),
        "tokens-00001.arrayrecord has .* bytes; .* were written",
    ),
    "index of another shard": (
        lambda f: (f / "tokens-00001.index").write_bytes((f / "tokens-00002.index").read_bytes()),
        "tokens-00001.index",
    ),
    "unfinished": (lambda f: (f / MANIFEST).unlink(), "unfinished work of mm01-tokenize"),
    "no manifest": (lambda f: (f / MANIFEST).write_text("[]"), "tokens.json: JSON of a list"),
    "a count": (lambda f: change_manifest(f, documents=7), "documents is 7, its shards have"),
    "a negative count": (lambda f: change_manifest(f, tokens=-1), "tokens is -1"),
    "a dtype": (lambda f: change_manifest(f, dtype="object"), "dtype is 'object'"),
    "a format": (lambda f: change_manifest(f, format="mm01 tokens 2"), "format is 'mm01 tokens 2'"),
    "a name": (lambda f: change_manifest(f, more=1), "'more' is a name that mm01-tokenize never writes"),
    "shards": (lambda f: change_manifest(f, shards=[[1, 2]]), "shards is"),
    "bytes of text": (lambda f: change_manifest(f, text_bytes=2**63 - 1), "text_bytes is 9,223,372,.* its shards have"),
    "files": (lambda f: change_manifest(f, num_files=2**62), "num_files is 4,611,686,.* are named"),
    "bad records": (lambda f: change_manifest(f, bad=2**62), "bad is 4,611,686,.* are named"),
    "names of files": (
        lambda f: change_manifest(f, files={"\ud800": [1, 1, ""]}, num_files=1),
        "tokens.json: its fingerprint is not that of the files it names",
    ),
    "text beside": (lambda f: (f / "more.txt").write_text("more"), "more.txt is no file of this tokenization"),
    "dropped": (lambda f: change_manifest(f, dropped=2**62), "dropped is 4,611,686,.* more than text_bytes"),
    "more documents than a shard may have": (
        lambda f: (change_shard(f, 0, 10**11), change_shard(f, 1, 10**11)),
        "tokens.json: shard 0 has 100,000,000,000 documents .* allowed: at most 20,000,000",
    ),
    "more tokens than its bytes": (
        lambda f: change_shard(f, 1, 2**40),
        "tokens.json: shard 0 has .* of 1,099,511,627,776 tokens in .* bytes",
    ),
    "another tokenizer": (lambda f: change_manifest(f, tokenizer="0" * 64), "tokens of another tokenizer"),
}


def test_a_record_that_unpacks_to_very_many_bytes_is_refused_before_it_is_read(damaged):
    from array_record.python.array_record_module import ArrayRecordWriter

    folder, paths = TokenFolder(str(damaged)), token_files.paths(damaged, 0)
    writer = ArrayRecordWriter(str(paths.tokens), "group_size:1,zstd")
    writer.write(bytes(80 * 2**20))
    writer.close()
    with pytest.raises(DataError, match="tokens-00000.arrayrecord: records from 0 on take 83,8.*packed into"):
        folder.tokens(0)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_by_name_before_any_row(place, damaged, name):
    spoil, said = DAMAGES[name]
    spoil(damaged)
    with pytest.raises(DataError, match=said) as error:
        opened(place, damaged)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([1, 2, 60_000], "has ids 1 to 60000; allowed are 0 to 279"),
        ([5, "end", 6], "which ends a document"),
    ],
)
def test_ids_that_no_text_has_are_refused_where_they_are_read(place, damaged, ids, said):
    end = json.loads((damaged / MANIFEST).read_text())["end_of_document"]
    rewrite(damaged, np.array([end if one == "end" else one for one in ids], "<u2").tobytes())
    rows = opened(place, damaged, held_out=0.0).train
    with pytest.raises(DataError, match=said):
        for index in range(rows.tokens_per_epoch // S + 1):
            rows.row(index)


def test_a_changed_shard_is_refused_where_it_is_read_and_names_the_document(place, damaged):
    other = damaged / "tokens-00002.arrayrecord"
    raw = bytearray(other.read_bytes())
    raw[100] ^= 1
    other.write_bytes(raw)
    rows = opened(place, damaged, held_out=0.0).train
    with pytest.raises(DataError, match="tokens-00002.arrayrecord"):
        for index in range(rows.tokens_per_epoch // S + 1):
            rows.row(index)


def test_a_shard_of_another_tokenization_of_the_same_size_is_refused_where_it_is_read(place, damaged, tmp_path):
    source = write_texts(tmp_path / "other")
    raw = (source / "c.jsonl").read_text()
    (source / "c.jsonl").write_text(raw.replace("tale", "late"))
    tokenized(source, str(place / "words" / "tokenizer.json"), tmp_path / "others")
    ours, theirs = damaged / "tokens-00003.arrayrecord", tmp_path / "others" / "tokens-00003.arrayrecord"
    assert ours.stat().st_size == theirs.stat().st_size and ours.read_bytes() != theirs.read_bytes()
    shutil.copy(theirs, ours)
    rows = opened(place, damaged, held_out=0.0).train
    with pytest.raises(DataError, match=r"tokens-00003.arrayrecord document \d is damaged"):
        for index in range(rows.tokens_per_epoch // S + 1):
            rows.row(index)


def test_conversations_are_not_read_from_tokens(place):
    with pytest.raises(ValueError, match="data.records='conversations'.*tokens of text"):
        opened(place, place / "tokens", records="conversations")
