"""What a Parquet file says of its sizes is looked at before its library believes it."""

import os
import time
import types

import pyarrow
import pyarrow.parquet
import pytest

from mm01_jax.data import parquet_rows, parquet_sizes
from mm01_jax.data.corpus import scan_corpus
from mm01_jax.data.sources import find_shards
from mm01_jax.data.text import DataError


def corpus_of(path):
    return scan_corpus(find_shards(str(path), "text"), 0, print)


def read_here(path):
    """As its own process does, which nothing of a test reaches."""
    return list(parquet_rows.Rows(path.name, path, "text").batches())


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_a_page_that_unpacks_to_very_many_times_its_size_is_refused_whatever_the_footer_says(
    tmp_path, monkeypatch, version, dictionary
):
    options = {"compression": "zstd", "use_dictionary": dictionary, "data_page_version": version}
    table = pyarrow.table({"text": ["hi", "a" * 30_000_000]})  # so much a footer may say of a column
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", write_statistics=False, **options)
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", None)  # nothing is unpacked
    with pytest.raises(DataError, match=r"a.parquet: a page of .* bytes .* unpacks to 30,000,0.*; allowed: at most 32"):
        read_here(tmp_path / "a.parquet")


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_every_page_of_a_sound_file_is_found_with_its_size(tmp_path, version, compression):
    texts = [f"{n} " * 2000 for n in range(3000)]
    options = {"compression": compression, "data_page_version": version, "write_batch_size": 10, "row_group_size": 2000}
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, use_dictionary=False, **options)
    metadata = pyarrow.parquet.read_metadata(path)
    with open(path, "rb") as file:
        for group in range(metadata.num_row_groups):
            column = metadata.row_group(group).column(0)
            pages = [sizes for _, *sizes in parquet_sizes._pages(file.fileno(), "a", column)]
            assert len(pages) > 5
            headers = column.total_compressed_size - sum(packed for packed, *_ in pages)
            assert 0 < headers < 100 * len(pages) + 2 * 20_000 * len(pages)  # with the least and the greatest text
            assert sum(unpacked for _, unpacked, *_ in pages) + headers == column.total_uncompressed_size
    assert len(corpus_of(path)) == 3000


def test_pages_without_values_or_without_an_end_are_refused(tmp_path):
    empty = bytes([0x15, 0, 0x15, 0, 0x15, 0, 0x2C, 0x15, 0, 0, 0])  # of 0 bytes, with 0 values
    for content, said in ((empty * 1000, "hold no values"), (b"\x19" * 9000, "12 deep"), (b"\x18", "does not end")):
        (tmp_path / "a.parquet").write_bytes(content)
        column = types.SimpleNamespace(
            data_page_offset=0, dictionary_page_offset=None, num_values=9, total_compressed_size=len(content)
        )
        with open(tmp_path / "a.parquet", "rb") as file, pytest.raises(DataError, match=f"^a.parquet.*{said}"):
            parquet_sizes.check_pages(file.fileno(), "a.parquet", column)


def test_page_headers_of_other_kinds_of_values_and_files_of_another_kind_are_refused_by_name(tmp_path):
    good = bytes([0x15, 0, 0x15, 0, 0x15, 0, 0x2C, 0x15, 2, 0, 0])
    for content in (
        good[:6] + bytes([0x25, 2, 0]),
        bytes([0x1C, 0, 0x15, 0, 0x15, 0, 0]),
        good[:7] + bytes([0x1C, 0, 0, 0]),
    ):
        (tmp_path / "a.parquet").write_bytes(content * 100)
        column = types.SimpleNamespace(
            data_page_offset=0, dictionary_page_offset=None, num_values=9, total_compressed_size=len(content)
        )
        with open(tmp_path / "a.parquet", "rb") as file, pytest.raises(DataError, match="other values than it may"):
            parquet_sizes.check_pages(file.fileno(), "a.parquet", column)
    (tmp_path / "a.parquet").write_text('{"text": "a"}\n' * 9)
    with pytest.raises(DataError, match="a.parquet is no whole Parquet file: it does not begin and end with PAR1"):
        corpus_of(tmp_path / "a.parquet")


def test_a_footer_of_very_many_row_groups_or_columns_is_refused_before_the_library_reads_it(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["h"] * 20} | {f"c{n}": pyarrow.nulls(20, pyarrow.int8()) for n in range(500)})
    options = {"compression": "none", "write_statistics": False, "use_dictionary": False, "store_schema": False}
    pyarrow.parquet.write_table(table, path, row_group_size=1, **options)
    assert len(corpus_of(path)) == 20
    monkeypatch.setattr(parquet_sizes, "_MOST_TAKEN", 10_000 * 900)  # as much as so many columns take
    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", None)
    with pytest.raises(DataError, match=r"a.parquet: its footer, of [0-9,]* bytes, holds very many values"):
        read_here(path)
    with open(path, "r+b") as file:  # one that ends before what it says
        file.seek(-(1 << 18), os.SEEK_END)
        file.write(b"\x19\xfc" + b"\xff" * (1 << 17))
    with pytest.raises(DataError, match=r"a.parquet: its footer, of [0-9,]* bytes, "):
        read_here(path)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_column_of_texts_that_repeat_others_is_refused_by_how_it_is_written(tmp_path, version):
    options = {"use_dictionary": False, "data_page_version": version}
    options |= {"column_encoding": {"text": "DELTA_BYTE_ARRAY"}}
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "one two"]}), tmp_path / "a.parquet", **options)
    with pytest.raises(
        DataError, match=r"a.parquet: a page \(at byte 4\) is written as DELTA_BYTE_ARRAY.*allowed: plain and"
    ):
        corpus_of(tmp_path / "a.parquet")


def test_rows_that_no_bytes_stand_for_are_refused(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"] * 90_000}), tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match=r"a.parquet: its [0-9,]+ bytes have [0-9,]+ rows and more; allowed: 65,536, and"
    ):
        corpus_of(tmp_path / "a.parquet")


def test_pages_that_are_much_together_are_refused_though_each_is_not(tmp_path):
    """Row groups may even be one chunk: what the footer says of them is not counted, their pages are."""
    texts = ["a" * 10_000_000, *"bcdefghij"]
    options = {"compression": "zstd", "use_dictionary": False, "row_group_size": 1, "write_statistics": False}
    pyarrow.parquet.write_table(pyarrow.table({"text": texts[:1] * 9 + texts}), tmp_path / "a.parquet", **options)
    with pytest.raises(DataError, match=r"a.parquet: its pages unpack to [0-9,]+ bytes and more, the whole file has"):
        corpus_of(tmp_path / "a.parquet")


@pytest.mark.parametrize("wished", [False, True])
def test_a_large_dictionary_is_not_made_again_with_every_few_rows(tmp_path, wished):
    """Of a column that its writer wishes to be one, the library makes it new for every batch."""
    words = [f"{n:0100d}" for n in range(100_000)]
    column = pyarrow.array(words + words[:1] * 100_000)
    table = pyarrow.table({"text": column.dictionary_encode() if wished else column})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", compression="zstd", dictionary_pagesize_limit=1 << 30)
    began = time.process_time()
    found = [text for _, text in find_shards(str(tmp_path / "a.parquet"), "text")[0].documents(lambda size: None)]
    assert found == [word.encode() for word in words + words[:1] * 100_000]
    assert time.process_time() - began < 8  # two, and over a minute where it is made for every few rows
