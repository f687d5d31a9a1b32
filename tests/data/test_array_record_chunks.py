"""Chunks of ArrayRecord files: each unpacked once, and none that is far larger than what the file holds."""

import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from mm01_jax.data import array_record
from mm01_jax.data.array_record import ArrayRecordFile
from mm01_jax.data.text import DataError


def written(path, records, options):
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return path


@pytest.mark.parametrize(
    ("options", "reads"),
    [("group_size:1", 3), ("group_size:3,uncompressed", 3), ("group_size:256", 1), ("group_size:16,transpose:true", 3)],
)
def test_array_records_are_read_by_chunks_each_once(tmp_path, monkeypatch, options, reads):
    sizes = [0, 65_472, 1, 7_000_000, 30, 7_000_000, *([7] * 244)]
    texts = [b"a" * size for size in sizes]
    path = written(tmp_path / "data.arrayrecord", texts, options)
    monkeypatch.setattr(array_record, "_READ_BYTES", 10_000_000)
    parts = []
    read = ArrayRecordFile._read
    monkeypatch.setattr(ArrayRecordFile, "_read", lambda *given: parts.append(given[1:]) or read(*given))
    assert [text for _, text in ArrayRecordFile("data", path).contents()] == texts
    assert len(parts) <= reads


def test_an_array_record_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = written(tmp_path / "data.arrayrecord", [b"a", b"a" * (65 << 20)], "group_size:1")
    with pytest.raises(DataError, match="data.arrayrecord: records from 1 on take 68,15.* allowed: at most 32 times"):
        list(ArrayRecordFile("data.arrayrecord", path).contents())


def test_chunks_that_are_much_together_are_refused(tmp_path):
    path = written(tmp_path / "many.arrayrecord", [b"a" * (15 << 20)] * 2, "group_size:1")
    with pytest.raises(
        DataError, match="many.arrayrecord: its [0-9,]+ bytes unpack to 31,.* and more; allowed: at most 32"
    ):
        list(ArrayRecordFile("many.arrayrecord", path).contents())


def test_records_that_no_bytes_stand_for_are_refused(tmp_path):
    path = written(tmp_path / "many.arrayrecord", [b"a"] * 200_000, "group_size:200000,zstd")
    with pytest.raises(
        DataError, match="many.arrayrecord: its [0-9,]+ bytes have 200,000 records; allowed: 65,536, and"
    ):
        list(ArrayRecordFile("many.arrayrecord", path).contents())
