"""Compressed lines and Parquet: the same documents as plain ones, damage and bombs refused in bounded memory."""

import gzip
import json
import resource
import zlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from mm01_jax.config import DataConfig
from mm01_jax.data import copied, parquet_rows
from mm01_jax.data.compressed import CompressedLines
from mm01_jax.data.corpus import scan_corpus
from mm01_jax.data.dataset import open_dataset
from mm01_jax.data.sources import find_shards
from mm01_jax.data.text import DataError
from mm01_jax.data.token_folder import TokenFolder
from tests.data.text_folder import tokenized

TEXTS = [
    "one",
    "two é",
    "three\nlines\n",
    "日本語 " * 40,
    *(f"a tale of {i} cities " * (i % 9 + 1) for i in range(200)),
]
LINES = "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(TEXTS)).encode()
MOST_MEMORY = 200 << 20


def write_parquet(path, texts=TEXTS, **options):
    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    pyarrow.parquet.write_table(table, path, write_page_checksum=True, **({"row_group_size": 50} | options))
    return path


def write(folder, kind):
    path = folder / f"data.{kind}"
    if kind == "parquet":
        return write_parquet(path)
    zstd = zstandard.ZstdCompressor(write_checksum=True)  # as the program does
    whole = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstd.compress}[kind]
    path.write_bytes(whole(LINES))
    return path


KINDS = ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"]
PACKED = KINDS[1:]


def corpus_of(source, field="text", max_bad_records=0):
    return scan_corpus(find_shards(str(source), field), max_bad_records, print)


def texts_of(source, **options):
    corpus = corpus_of(source, **options)
    return [corpus.read(document).decode() for document in range(len(corpus))]


@pytest.mark.parametrize("kind", PACKED)
def test_every_format_gives_the_documents_and_any_range_of_them(tmp_path, kind):
    corpus = corpus_of(write(tmp_path, kind))
    assert [corpus.read(document).decode() for document in range(len(corpus))] == TEXTS
    for document in (0, 3, 90):
        raw = TEXTS[document].encode()
        assert corpus.read(document, 2, len(raw)) == raw[2:]


@pytest.mark.parametrize("kind", PACKED)
def test_every_format_gives_the_same_tokens_on_disk_and_the_same_rows(tmp_path, kind):
    plain, packed = write(tmp_path, "jsonl"), write(tmp_path, kind)
    tokenized(plain, "bytes", tmp_path / "plain")
    tokenized(packed, "bytes", tmp_path / "packed")
    folders = [TokenFolder(str(tmp_path / name)) for name in ("plain", "packed")]
    assert len(folders[0]) == len(folders[1]) == len(TEXTS)
    for document in range(len(TEXTS)):
        assert (folders[0].tokens(document) == folders[1].tokens(document)).all()
    digests = [[file.digest for file in folder.files.values()] for folder in folders]
    assert digests[0] == digests[1]
    row = [
        open_dataset(DataConfig(source=str(source), held_out=0.1), 512, 257, log=lambda _: None).train.row(3)
        for source in (plain, packed, tmp_path / "packed")
    ]
    assert all((row[0][name] == other[name]).all() for other in row[1:] for name in row[0])


def test_a_folder_may_hold_every_kind_and_what_stands_beside_parquet_is_left_out(tmp_path):
    for kind in KINDS:
        write(tmp_path, kind)
    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "_SUCCESS").write_text("")
    with pytest.raises(DataError, match="holds the same 204 documents as"):
        corpus_of(tmp_path)
    for kind in PACKED:
        (tmp_path / f"data.{kind}").unlink()
    assert texts_of(tmp_path) == ["a text", *TEXTS]
    (tmp_path / "notes.csv").write_text("a,b")
    with pytest.raises(ValueError, match="notes.csv has the suffix '.csv'"):
        corpus_of(tmp_path)


def test_several_members_and_frames_are_one_file(tmp_path):
    half = LINES.index(b"\n", len(LINES) // 2) + 1
    compress = zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"
    members = (gzip.compress(part) + bytes(100_000) for part in (LINES[:half], LINES[half:]))  # as gzip takes them
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(members))
    (tmp_path / "b.jsonl.zst").write_bytes(compress(LINES[:half]) + skippable + compress(LINES[half:]))
    assert texts_of(tmp_path / "a.jsonl.gz") == TEXTS and texts_of(tmp_path / "b.jsonl.zst") == TEXTS


@pytest.mark.parametrize("kind", PACKED)
def test_a_cut_file_is_refused_wherever_it_was_cut(tmp_path, kind):
    path = write(tmp_path, kind)
    whole = path.read_bytes()
    for size in sorted({0, 1, 3, 9, 20, *range(40, len(whole), max(1, len(whole) // 25)), len(whole) - 1}):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=path.name) as error:
            corpus_of(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", PACKED)
def test_a_flipped_bit_is_refused_or_changes_nothing_that_is_read(tmp_path, kind):
    path = write(tmp_path, kind)
    whole, chance = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        raw = bytearray(whole)
        raw[chance.integers(len(raw))] ^= 1 << int(chance.integers(8))
        path.write_bytes(raw)
        try:
            assert texts_of(path) == TEXTS  # a time stamp of gzip, a statistic of Parquet
        except DataError as error:
            refused += 1
            assert path.name in str(error) and "\n" not in str(error)
    assert refused > 20


def bomb_zstd(path):
    """4 GB of spaces in 130 kB."""
    with open(path, "wb") as file, zstandard.ZstdCompressor(level=3).stream_writer(file) as out:
        out.write(b'{"text": "')
        for _ in range(1 << 10):
            out.write(b" " * (1 << 22))
        out.write(b'"}\n')


def bomb_gzip(path):
    with gzip.open(path, "wb", compresslevel=1) as out:
        out.write(b'{"text": "')
        for _ in range(100):
            out.write(b"a" * (1 << 20))


def bomb_lines(path):
    line = json.dumps({"text": "ab" * 500}).encode() + b"\n"
    path.write_bytes(zstandard.ZstdCompressor().compress(line * 200_000))


def bomb_parquet(path):
    write_parquet(path, ["a" * 1_000_000] * 1000, row_group_size=1000)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (bomb_zstd, "a.jsonl.zst"),
        (bomb_gzip, "a.jsonl.gz"),
        (bomb_lines, "a.jsonl.zst"),
        (bomb_parquet, "a.parquet"),
    ],
)
def test_a_bomb_is_refused_by_name_in_bounded_memory(tmp_path, make, name):
    make(tmp_path / name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=f"{name}.*allowed: at most 100 times as many"):
        corpus_of(tmp_path / name, max_bad_records=5)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_MEMORY


def test_a_zstd_window_beyond_the_bound_is_refused(tmp_path):
    large = zstandard.ZstdCompressionParameters.from_level(3, window_log=30)
    path = tmp_path / "a.jsonl.zst"
    with open(path, "wb") as file, zstandard.ZstdCompressor(compression_params=large).stream_writer(file) as out:
        out.write(LINES)
        out.flush()
        out.write(LINES)
    with pytest.raises(DataError, match="a.jsonl.zst is damaged"):
        corpus_of(path)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"body": ["a"]}, r"'text' is no column of it; it has \['body'\]"),
        ({"text": [1, 2]}, "is of int64, not of text"),
        ({"text": [b"a"]}, "is of binary, not of text"),
        ({"text": [["a"]]}, "is of list.*not of text"),
        ({"text": pyarrow.array([], pyarrow.string())}, "0 rows"),
        ({"text": ["a", None]}, "row 1: data.text_field='text' has no text"),
        ({"text": ["a", ""]}, "row 1: it is empty"),
        ({"text": ["a", "b\0"]}, "row 1: it has a NUL byte"),
    ],
)
def test_parquet_without_text_is_refused_by_what_is_wrong(tmp_path, table, said):
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=f"a.parquet.*{said}"):
        corpus_of(tmp_path / "a.parquet")


def test_parquet_with_two_columns_of_a_name_or_a_name_that_is_no_text_is_refused_by_name(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table([TEXTS, TEXTS], names=["text", "text"]), path)
    with pytest.raises(DataError, match=r"^a.parquet: 2 columns of it are named 'text'; allowed: one.$"):
        corpus_of(path)
    pyarrow.parquet.write_table(pyarrow.table([TEXTS, TEXTS], names=["Text", "text"]), path)
    path.write_bytes(path.read_bytes().replace(b"Text", b"\xff\xfe\xfd\xfc"))
    with pytest.raises(DataError, match=r"^a.parquet is no whole Parquet file: .*invalid start byte.$"):
        corpus_of(path)


def test_a_column_of_a_dictionary_or_of_large_strings_is_text(tmp_path):
    for number, kind in enumerate((pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))):
        table = pyarrow.table({"text": pyarrow.array(TEXTS).cast(kind)})
        pyarrow.parquet.write_table(table, tmp_path / f"{number}.parquet")
        assert texts_of(tmp_path / f"{number}.parquet") == TEXTS


def test_a_row_that_its_dictionary_does_not_have_is_no_bug_of_ours(tmp_path, monkeypatch):
    beyond = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 7], pyarrow.int32()), ["one"], safe=False)
    path = write_parquet(tmp_path / "a.parquet", ["one", "two"])
    monkeypatch.setattr(parquet_rows, "_texts", lambda column, texts=parquet_rows._texts: texts(beyond))
    with pytest.raises(DataError, match="a.parquet is no whole Parquet file: index out of bounds"):
        list(parquet_rows.Rows("a.parquet", path, "text").batches())


def test_bad_rows_are_skipped_and_counted(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["one", None, "two"])
    corpus = corpus_of(tmp_path / "a.parquet", max_bad_records=1)
    assert len(corpus) == 2 and corpus.bad[0].startswith("a.parquet row 1")


def test_text_that_is_no_utf8_in_parquet_is_named(tmp_path):
    offsets, values = np.array([0, 2, 4], np.int32), b"ab\xff\xfe"
    made = pyarrow.StringArray.from_buffers(2, pyarrow.py_buffer(offsets), pyarrow.py_buffer(values))
    pyarrow.parquet.write_table(pyarrow.table({"text": made}), tmp_path / "a.parquet", use_dictionary=False)
    with pytest.raises(DataError, match="a.parquet row 1: it is not UTF-8"):
        corpus_of(tmp_path / "a.parquet")


def test_what_is_no_file_of_its_kind_is_refused(tmp_path):
    for name in ("a.parquet", "a.jsonl.gz", "a.jsonl.zst"):
        for content in (b"", b"PAR1", LINES, b"\0" * 5000, zlib.compress(LINES), b"PAR1" + LINES + b"PAR1"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DataError, match=name):
                corpus_of(tmp_path / name)


def test_more_text_than_may_be_copied_names_the_command_that_copies_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(copied, "MOST_COPIED", 100)
    monkeypatch.setattr(copied, "_COPIES", copied._Copies())
    path = write(tmp_path, "parquet")
    with pytest.raises(DataError, match="data.parquet.*mm01-tokenize"):
        corpus_of(path)
    tokenized(path, "bytes", tmp_path / "tokens")
    assert len(TokenFolder(str(tmp_path / "tokens"))) == len(TEXTS)


@pytest.mark.parametrize(("kind", "module"), [("jsonl.zst", "zstandard"), ("parquet", "pyarrow")])
def test_without_its_extra_a_format_is_refused_with_what_to_install(tmp_path, monkeypatch, kind, module):
    path = write(tmp_path, kind)
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ValueError, match=r"pip install 'mm01_jax\["):
        corpus_of(path)


def test_a_parquet_file_whose_footer_is_very_large_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "a.parquet", "wb") as file:
        file.write(b"PAR1")
        file.truncate(20 << 20)
        file.seek(-8, 2)
        file.write((18 << 20).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(DataError, match="a.parquet: a footer of 18,874,368 bytes; allowed: at most 16,777,216"):
        open_dataset(DataConfig(source=str(tmp_path), held_out=0.0), 8, 257)


def test_lines_of_which_one_block_holds_very_many_are_told_as_they_are_unpacked_or_refused(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "%s"}\n' % (b"a" * 100) * 60_000, 9))
    told = []
    assert sum(1 for _ in CompressedLines("a", tmp_path / "a.jsonl.gz", "text").scan(told.append)) == 60_000
    assert len(told) > 5 and sum(told) == (tmp_path / "a.jsonl.gz").stat().st_size
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 70_000))
    with pytest.raises(DataError, match=r"^a: its first .* lines and more; allowed: 65,536, and one"):
        list(CompressedLines("a", tmp_path / "a.jsonl.gz", "text").scan(told.append))
