"""Parquet and ArrayRecord files are read in a process of its own: how it ends is one line, and its cost is bounded."""

import os
import signal

import pyarrow
import pyarrow.parquet
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from mm01_jax.data import cost, parquet_sizes, reading
from mm01_jax.data.array_record import ArrayRecordFile
from mm01_jax.data.corpus import scan_corpus
from mm01_jax.data.sources import find_shards
from mm01_jax.data.text import DataError, Unreadable

ABORTS = "import os; os.abort()"
ENDS = "import sys; sys.exit(1)"
SPINS = "from mm01_jax.data.tokenizer_process import confine\nconfine(0.2)\nwhile True: pass"
SAYS_NO_JSON = "import sys; sys.stdin.buffer.readline(); print('terminate called', flush=True)"


@pytest.fixture(autouse=True)
def own_processes():
    yield end_them()
    end_them()


def end_them():
    for pool in reading._POOLS.values():
        pool.end()


def written(path, texts):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    else:
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for text in texts:
            writer.write(text.encode())
        writer.close()
    return path


def texts_of(path):
    return [text for shard in find_shards(str(path), "text") for _, text in shard.documents(lambda size: None)]


@pytest.mark.parametrize("suffix", [".parquet", ".arrayrecord"])
@pytest.mark.parametrize(
    ("program", "said"),
    [
        (ABORTS, r"ended the library \(SIGABRT: damaged, or more than \d+ MiB asked for\)"),
        (ENDS, r"ended the library \(1\)"),
        (SPINS, "takes too long"),
        (SAYS_NO_JSON, r"ended the library \(0\)"),
    ],
)
def test_however_the_process_ends_it_is_one_line_that_names_the_file(
    tmp_path, monkeypatch, capfd, suffix, program, said
):
    path = written(tmp_path / f"a{suffix}", ["one", "two"])
    for pool in reading._POOLS.values():
        monkeypatch.setattr(pool, "_program", ["-c", program])
    with pytest.raises(DataError, match=rf"^a{suffix}: reading it {said}\.$"):
        texts_of(path)
    monkeypatch.undo()
    assert texts_of(path) == [b"one", b"two"] and capfd.readouterr().err == ""  # the next one reads


def test_one_process_reads_file_after_file_and_goes_on_after_a_bad_one(tmp_path):
    good = written(tmp_path / "a.parquet", ["one", None, ""])
    (tmp_path / "b.parquet").write_bytes(b"PAR1" + bytes(40) + b"PAR1")
    assert texts_of(good) == [b"one", b"", b""]
    (process,) = reading._POOLS[True]._idle
    with pytest.raises(DataError, match="^b.parquet"):
        texts_of(tmp_path / "b.parquet")
    assert texts_of(good) == [b"one", b"", b""] and reading._POOLS[True]._idle == [process]
    assert written(tmp_path / "c.arrayrecord", ["three"]) and texts_of(tmp_path / "c.arrayrecord") == [b"three"]
    assert len(reading._POOLS[True]._idle) == len(reading._POOLS[False]._idle) == 1


def test_who_stops_in_the_middle_gets_no_rest_of_it_later(tmp_path):
    long = written(tmp_path / "a.parquet", [f"text {n}" for n in range(1000)])
    found = find_shards(str(long), "text")[0].documents(lambda size: None)
    assert next(found)[1] == b"text 0"
    found.close()
    assert not reading._POOLS[True]._idle
    assert len(texts_of(long)) == 1000


def test_a_signal_to_all_of_a_terminal_does_not_end_it(tmp_path):
    path = written(tmp_path / "a.parquet", ["one"])
    assert texts_of(path) == [b"one"]
    (process,) = reading._POOLS[True]._idle
    assert os.getsid(process._process.pid) != os.getsid(0)
    os.kill(process._process.pid, signal.SIGKILL)  # by who is out of memory, while nothing is asked of it
    process._process.wait()
    assert texts_of(path) == [b"one"] and reading._POOLS[True]._idle != [process]


def test_memory_is_bounded_by_the_size_of_the_file(tmp_path, monkeypatch):
    path = written(tmp_path / "a.parquet", ["a" * 30_000_000])
    assert len(texts_of(path)[0]) == 30_000_000
    monkeypatch.setattr(reading, "_MEMORY", 150 << 20)
    with pytest.raises(DataError, match=r"^a.parquet: reading it takes more than 1[56][0-9] MiB of memory\.$"):
        texts_of(path)


def test_processor_time_is_bounded_by_the_size_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "SECONDS", -1.0)  # nothing, in whole seconds from now on
    path = written(tmp_path / "a.parquet", [str(n) for n in range(200_000)])
    monkeypatch.setattr(cost, "A_MIB", 0.0)
    with pytest.raises(DataError, match="^a.parquet: reading it takes too long"):
        list(reading.batches("a.parquet", path, "text"))


def test_a_page_lies_in_its_file(tmp_path, monkeypatch):
    path = written(tmp_path / "a.parquet", ["one"])
    monkeypatch.setattr(
        parquet_sizes, "_header", lambda *at, real=parquet_sizes._header: (real(*at)[0] | {3: 2**31 - 1}, real(*at)[1])
    )
    with open(path, "rb") as file, pytest.raises(DataError, match=r"^a: a page of 2,147,483,647 bytes \(at byte 4\); "):
        column = pyarrow.parquet.read_metadata(path).row_group(0).column(0)
        parquet_sizes.check_pages(file.fileno(), "a", column)


def test_a_group_has_the_values_that_its_rows_are(tmp_path):
    path = written(tmp_path / "a.parquet", [f"{n}" for n in range(100)])
    whole = path.read_bytes()
    at = whole.rindex(
        b"\x16\xc8\x01", 0, whole.rindex(b"ARROW:schema")
    )  # the group's number of rows, last of its fields
    path.write_bytes(whole[:at] + b"\x16\x86\x01" + whole[at + 3 :])  # 67
    with pytest.raises(DataError, match="^a.parquet has no whole rows: a group of 67 rows has 100 values of 'text'"):
        texts_of(path)


def test_an_index_that_leaves_out_records_is_refused(tmp_path):
    path = written(tmp_path / "a.arrayrecord", ["one", "two", "three"])
    assert texts_of(path) == [b"one", b"two", b"three"]
    path.write_bytes(path.read_bytes() * 2)  # of two files one behind the other the index of the last is read
    with pytest.raises(
        DataError, match="^a.arrayrecord is damaged: its index has 3 records, its chunks have 7 and more"
    ):
        scan_corpus(find_shards(str(path), "text"), 0, print)
    with pytest.raises(DataError, match="its index has 3 records"):
        ArrayRecordFile("a", path).check_chunks(3)


def test_a_file_that_is_gone_is_said_to_be(tmp_path):
    with pytest.raises(Unreadable, match=r"^a.arrayrecord cannot be read: .*No such file"):
        ArrayRecordFile("a.arrayrecord", tmp_path / "a.arrayrecord").record(0)
