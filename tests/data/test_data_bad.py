"""Bad data is refused or counted by name, and the data set is never silently shorter."""

import gzip
import json
import os
import random

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from mm01_jax.config import DataConfig
from mm01_jax.data import compressed
from mm01_jax.data.batch import Batch
from mm01_jax.data.dataset import open_dataset
from mm01_jax.data.pipeline import batches, check_batch
from mm01_jax.data.text import BLOCK, DataError

# Records that are no text: what is wrong -> (the record, what the message says).
TEXT_FILES = {
    "invalid byte": (b"good\xffbad", r"not UTF-8 \(at byte 4"),
    "latin-1": ("café au lait".encode("latin-1"), r"not UTF-8 \(at byte 3"),
    "ends inside a character": ("ab日".encode()[:-1], r"ends inside a character \(at byte 2"),
    "encoded surrogate": (b"ab\xed\xa0\x80", r"not UTF-8 \(at byte 2"),
    "overlong slash": (b"\xc0\xaf", r"not UTF-8 \(at byte 0"),
    "above U+10FFFF": (b"\xf5\x80\x80\x80", r"not UTF-8 \(at byte 0"),
    "broken after the first block": (b"a" * (BLOCK + 3) + b"\xfe", rf"not UTF-8 \(at byte {BLOCK + 3}"),
    "broken across blocks": (b"a" * (BLOCK - 1) + b"\xe6a", rf"not UTF-8 \(at byte {BLOCK - 1}"),
    "byte order mark": ("text".encode("utf-8-sig"), "byte order mark"),
    "UTF-16": ("text".encode("utf-16"), "not UTF-8|NUL"),
    "UTF-32": ("text".encode("utf-32-be"), "NUL byte"),
    "NUL": (b"ab\0cd", r"NUL byte \(at byte 2"),
    "gzip": (gzip.compress(b"text" * 100), "not UTF-8|NUL"),
    "empty": (b"", "it is empty"),
}
LINES = {
    "blank": (b"", "line is blank"),
    "not JSON": (b"hello", "not JSON"),
    "cut off": (b'{"text": "hel', "not JSON"),
    "array": (b'["text"]', "JSON list, not an object"),
    "null": (b"null", "JSON NoneType, not an object"),
    "no field": (b'{"txt": "a"}', r"data.text_field='text' has no text \(only \['txt'\]\)"),
    "number": (b'{"text": 7}', r"no text \(a int in it\)"),
    "empty text": (b'{"text": ""}', "it is empty"),
    "not UTF-8": (b'{"text": "\xff"}', "not UTF-8"),
    "half a surrogate": (b'{"text": "\\ud800"}', "half a surrogate"),
    "NUL": (b'{"text": "a\\u0000"}', "NUL byte"),
    "UTF-16": ('{"text": "a"}'.encode("utf-16-le"), "not JSON"),
    "nested without end": (b"[" * 200_000, "not JSON"),
}
RECORDS = {
    "not UTF-8": (b"\xff", "not UTF-8"),
    "empty": (b"", "it is empty"),
    "NUL": (b"\0", "NUL byte"),
}


def write_array_record(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def opened(path, **kwargs):
    return open_dataset(DataConfig(source=str(path), held_out=0.0, **kwargs), 8, 257)


def refused_then_counted(path, label, said):
    """Refused by default; with one bad record allowed, the other two documents are all there."""
    with pytest.raises(DataError, match=f"a bad record, and data.max_bad_records=0 allows none: {label}: .*({said})"):
        opened(path)
    dataset = open_dataset(DataConfig(source=str(path), held_out=0.0, max_bad_records=1), 8, 257)
    assert [dataset.corpus.read(d) for d in range(len(dataset.corpus))] == [b"first", b"last"]
    assert len(dataset.corpus.bad) == 1 and dataset.corpus.bad[0].startswith(label)
    assert "1 bad record skipped" in dataset.describe()


@pytest.mark.parametrize("kind", TEXT_FILES)
def test_a_text_file_that_is_no_text_is_refused_by_name_or_counted(tmp_path, kind):
    content, said = TEXT_FILES[kind]
    for name, text in (("a.txt", b"first"), ("b.txt", content), ("c.txt", b"last")):
        (tmp_path / name).write_bytes(text)
    refused_then_counted(tmp_path, "b.txt", said)


@pytest.mark.parametrize("kind", LINES)
def test_a_line_that_is_no_record_is_refused_by_number_or_counted(tmp_path, kind):
    content, said = LINES[kind]
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "first"}\n' + content + b'\n{"text": "last"}\n')
    refused_then_counted(path, "data.jsonl line 2", said)


@pytest.mark.parametrize("kind", RECORDS)
def test_an_array_record_that_is_no_text_is_refused_by_number_or_counted(tmp_path, kind):
    content, said = RECORDS[kind]
    path = write_array_record(tmp_path / "data.arrayrecord", [b"first", content, b"last"])
    refused_then_counted(path, "data.arrayrecord record 1", said)


def test_a_last_line_that_was_cut_off_is_refused(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "first"}\n{"text": "la')
    with pytest.raises(DataError, match="data.jsonl line 2: it is not JSON"):
        opened(path)


def test_a_byte_order_mark_in_front_of_json_lines_is_refused(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "first"}\n')
    with pytest.raises(DataError, match="data.jsonl line 1: it is not JSON.*byte order mark"):
        opened(path)


def whole_array_record(path):
    rng = np.random.default_rng(0)
    texts = [bytes(rng.integers(97, 123, rng.integers(1, 2000), dtype=np.uint8)) for _ in range(300)]
    write_array_record(path, texts)
    return texts, path.read_bytes()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"", "0 bytes, not a multiple"),
        (lambda data: data[:-1], "not a multiple of 65536"),
        (lambda data: data[: len(data) // 3], "not a multiple of 65536"),
        (lambda data: data[: 1 << 16], "has no records: the file is truncated"),
        (lambda data: data[: -(1 << 16)], "has no records: the file is truncated"),
        (lambda data: bytes(1 << 16), "is not an ArrayRecord file|has no records"),
        (lambda data: random.Random(0).randbytes(1 << 16), "is not an ArrayRecord file|has no records"),
        (lambda data: data[: 1 << 16] + bytes(1 << 16) + data[1 << 17 :], "is damaged in records"),
    ],
    ids=["empty", "one byte short", "a third", "first block", "no last block", "zeros", "noise", "a zeroed block"],
)
def test_a_broken_array_record_file_is_refused_by_name(tmp_path, damage, said):
    path = tmp_path / "data.arrayrecord"
    _, data = whole_array_record(path)
    path.write_bytes(damage(data))
    with pytest.raises(DataError, match=f"data.arrayrecord .*({said})"):
        opened(path)


def test_an_array_record_file_without_records_is_refused(tmp_path):
    with pytest.raises(DataError, match="data.arrayrecord has no records"):
        opened(write_array_record(tmp_path / "data.arrayrecord", []))


def damaged_array_records_are_refused_or_whole(tmp_path, count):
    path = tmp_path / "data.arrayrecord"
    texts, data = whole_array_record(path)
    rng = random.Random(1)
    for _ in range(count):
        path.write_bytes(data[: rng.randrange(len(data))])
        with pytest.raises(DataError, match="data.arrayrecord"):
            opened(path)
    for _ in range(count):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:  # a flip in the padding between blocks harms nothing
            corpus = opened(path).corpus
        except DataError as error:
            assert "data.arrayrecord" in str(error)
        else:
            assert [corpus.read(d) for d in range(len(corpus))] == texts


def test_truncated_and_flipped_array_record_files_are_refused_or_whole(tmp_path):
    damaged_array_records_are_refused_or_whole(tmp_path, 60)


@pytest.mark.slow
def test_many_truncated_and_flipped_array_record_files_are_refused_or_whole(tmp_path):
    damaged_array_records_are_refused_or_whole(tmp_path, 1000)


def test_an_empty_jsonl_file_is_refused(tmp_path):
    (tmp_path / "data.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match="data.jsonl is empty"):
        opened(tmp_path / "data.jsonl")


def test_the_same_shard_twice_is_refused_but_equal_texts_are_not(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"text": "one"}\n{"text": "two"}\n')
    with pytest.raises(DataError, match="b.jsonl holds the same 2 documents as a.jsonl"):
        opened(tmp_path)
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "one"}\n')
    assert len(opened(tmp_path).corpus) == 4


def test_data_of_which_nothing_is_left_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match="No document is left of 1 files: a.txt: it is not UTF-8"):
        opened(tmp_path, max_bad_records=5)


def test_a_broken_link_in_a_folder_is_refused_by_name(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match="b.txt: missing"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda path: path.write_bytes(b"short"),
            "a.txt changed while in use: its text is another than the one that was indexed",
        ),
        (lambda path: path.write_bytes(b"as long as it was, no"), "a.txt changed while in use: its text is another"),
        (lambda path: path.unlink(), "a.txt document 0 cannot be read any more"),
    ],
)
def test_a_text_file_that_changes_during_the_run_stops_it(tmp_path, change, said):
    path = tmp_path / "a.txt"
    path.write_text("long enough to be cut")
    rows = opened(path).train
    change(path)
    with pytest.raises(DataError, match=said):
        next(batches(rows, 0, lambda step: 2, vocab_size=257))


def test_a_text_file_that_is_touched_and_not_changed_is_read_on(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("long enough to be cut")
    rows = opened(path).train
    os.utime(path, (1, 1))
    _, batch = next(batches(rows, 0, lambda step: 1, vocab_size=257))
    assert bytes(batch.tokens[0].tolist()) == b"long enough to be cut"[: batch.tokens.shape[1]]


def test_json_lines_that_change_during_the_run_stop_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    rows = opened(path).train
    for other in ('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n', '{"text": "one"}\n{"text": "2wo"}\n'):
        path.write_text(other)
        with pytest.raises(DataError, match="a.jsonl, the line at byte [0-9]+, changed while in use|a.jsonl changed"):
            next(batches(rows, 0, lambda step: 2, vocab_size=257))


def good_batch():
    return Batch(*(np.zeros((2, 4), np.int32) for _ in range(4)), np.zeros((2, 4), np.float32))


@pytest.mark.parametrize("name", ["tokens", "targets"])
@pytest.mark.parametrize("bad", [-1, 257, 65_536, 2**31 - 1])
def test_an_id_outside_the_vocabulary_is_refused_on_the_host(name, bad):
    batch = good_batch()
    check_batch(batch, 257, 0)
    getattr(batch, name)[1, 2] = bad
    with pytest.raises(DataError, match=f"{name} of the batch from row 5 on have ids .*allowed are 0 to 256"):
        check_batch(batch, 257, 5)


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused_before_any_data_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"model.vocab_size=256 is smaller than the 257 ids of data.tokenizer='bytes'"):
        open_dataset(DataConfig(source=str(tmp_path / "never looked at")), 8, 256)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"held_out": 1.0}, "data.held_out=1.0 must be"),
        ({"held_out": float("nan")}, "data.held_out=nan must be"),
        ({"seed": -1}, "data.seed=-1"),
        ({"max_bad_records": -1}, "data.max_bad_records=-1"),
    ],
)
def test_a_data_setting_that_cannot_be_is_refused(kwargs, said):
    with pytest.raises(ValueError, match=said):
        open_dataset(DataConfig(**kwargs), 8, 257)


def test_rows_of_no_token_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match="train.sequence_length=0"):
        open_dataset(DataConfig(source=str(tmp_path), held_out=0.0), 0, 257)


def test_documents_of_one_byte_are_all_there(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": letter}) + "\n" for letter in "abcdefgh"))
    row = open_dataset(DataConfig(source=str(path), held_out=0.0), 16, 257).train.row(0)
    assert sorted(row["tokens"][::2].tolist()) == list(b"abcdefgh")
    assert row["weights"].tolist() == [1.0, 0.0] * 8


def test_very_many_members_of_nothing_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "_MOST_SMALL", 100)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n') + gzip.compress(b"") * 120)
    with pytest.raises(DataError, match=r"^a\.jsonl\.gz: its first .* allowed: at least 32 bytes each"):
        open_dataset(DataConfig(source=str(tmp_path)), 8, 257)
