"""Looking at a file takes processor time in proportion to its bytes and records, or ends."""

import gzip
import json
import time

import pytest

from mm01_jax.data import cost, json_lines
from mm01_jax.data.corpus import scan_corpus
from mm01_jax.data.sources import find_shards
from mm01_jax.data.text import DataError


def busy(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet", ".arrayrecord"])
def test_a_file_whose_records_take_very_long_is_refused_by_name_whatever_its_format(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"a{suffix}"
    write(path, [f"text {n}" for n in range(100)])
    assert len(scan_corpus(find_shards(str(path), "text"), 0, print)) == 100
    monkeypatch.setattr(cost, "SECONDS", 0.2)
    monkeypatch.setattr(cost, "A_MIB", 1)
    slow_down(monkeypatch, suffix)
    with pytest.raises(
        DataError, match=rf"^a{suffix}: looking at it took 0\.[234]\d* s of the processor .*allowed: 0.2"
    ):
        scan_corpus(find_shards(str(path), "text"), 0, print)


def slow_down(monkeypatch, suffix):
    from mm01_jax.data import array_record, parquet

    def slow(*args, done):
        busy(0.02)
        return done(*args)

    place, name = {".parquet": (parquet, "examine"), ".arrayrecord": (array_record.ArrayRecordFile, "_read")}.get(
        suffix, (json_lines, "examine")
    )
    done = getattr(place, name)
    if suffix == ".arrayrecord":
        monkeypatch.setattr(array_record, "_READ", 1)
    monkeypatch.setattr(place, name, lambda *args: slow(*args, done=done))


def write(path, texts):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    if path.suffix == ".parquet":
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pa.table({"text": texts}), path)
    elif path.suffix == ".arrayrecord":
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(path), "group_size:1")
        for text in texts:
            writer.write(text.encode())
        writer.close()
    else:
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)


def test_a_record_and_a_mebibyte_may_take_time_of_their_own(monkeypatch):
    monkeypatch.setattr(cost, "SECONDS", 0.05)
    monkeypatch.setattr(cost, "A_RECORD", 0.01)

    def records(seconds):
        for number in range(20):
            busy(seconds)
            yield number

    assert len(list(cost.bounded("a", 0, records(0.005)))) == 20
    assert len(list(cost.bounded("a", 1 << 20, records(0.02)))) == 20
    with pytest.raises(DataError, match="^a: looking at it took"):
        list(cost.bounded("a", 0, records(0.02)))
