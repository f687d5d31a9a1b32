"""Sources: the standard library, and a user's .txt, .jsonl and .arrayrecord files."""

import difflib
import glob
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from mm01_jax.config import DataConfig
from mm01_jax.data import globs
from mm01_jax.data.corpus import Corpus, scan_corpus
from mm01_jax.data.dataset import check_unchanged, open_dataset
from mm01_jax.data.sources import find_shards
from mm01_jax.data.text import BLOCK, DataError

TEXTS = ["one", "two é", "three\nlines\n", "日本語 " * 40]


def corpus_of(source, max_bad_records=0):
    return scan_corpus(find_shards(str(source), "text"), max_bad_records, print)


def texts_of(corpus):
    return [corpus.read(document).decode() for document in range(len(corpus))]


def write_txt(folder, texts):
    folder.mkdir(exist_ok=True)
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_bytes(text.encode())
    return folder


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def write_array_record(path, texts):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for text in texts:
        writer.write(text.encode())
    writer.close()
    return path


@pytest.fixture(params=["txt", "jsonl", "arrayrecord"])
def source(request, tmp_path):
    if request.param == "txt":
        return write_txt(tmp_path / "data", TEXTS)
    write = {"jsonl": write_jsonl, "arrayrecord": write_array_record}[request.param]
    return write(tmp_path / f"data.{request.param}", TEXTS)


def test_every_kind_of_file_gives_back_the_texts_that_were_written(source):
    assert texts_of(corpus_of(source)) == TEXTS


def test_the_text_of_a_jsonl_record_is_under_the_key_that_the_config_names(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": "title", "body": text}) + "\n" for text in TEXTS))
    dataset = open_dataset(DataConfig(source=str(path), held_out=0.0, text_field="body"), 8, 257)
    assert texts_of(dataset.corpus) == TEXTS


def test_another_seed_gives_the_same_documents_in_another_order(tmp_path):
    folder = write_txt(tmp_path / "data", [letter * 7 for letter in "abcdefghijklmnop"])

    def rows(config):
        train = open_dataset(config, 8, 257).train
        return [train.row(i)["tokens"].tolist() for i in range(16)]

    first, other = (
        rows(DataConfig(source=str(folder), held_out=0.0)),
        rows(DataConfig(source=str(folder), held_out=0.0, seed=1)),
    )
    assert first != other
    assert sorted(first) == sorted(other)


def test_any_byte_range_of_a_document_reads_the_same_as_the_whole(source):
    corpus = corpus_of(source)
    for document, text in enumerate(TEXTS):
        data = text.encode()
        for start in range(0, len(data), 3):
            assert corpus.read(document, start, min(start + 5, len(data))) == data[start : start + 5]


def test_globs_find_what_the_standard_library_finds(tmp_path, monkeypatch):
    for name in ("a.txt", "b/a.txt", "b/c/a.txt", "b/.hidden/a.txt", "b/.a.txt", "[x]/a.txt", "b/c/d.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "e").symlink_to("b")
    (tmp_path / "b/c/circle").symlink_to("..")
    monkeypatch.chdir(tmp_path)
    wild = ["**/*.txt", "*", "**", "b/**/c/*", "**/a.txt", "b/.*", "[[]x]/*", "*/", "?/**/**/[ad].*", "b/*/.", "no/*"]
    for pattern in [*wild, *(f"{tmp_path}/{pattern}" for pattern in wild)]:
        expected = {p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p)}
        found = {p for p in globs.find(pattern) if os.path.isfile(p)}
        assert found <= expected and {*map(os.path.realpath, found)} == {*map(os.path.realpath, expected)}, pattern


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("{0}/" + "*/" * 12 + "*.txt", "looks at more than 5,000 names"),
        ("/proc/**/x/**/*.txt", "leads into /proc, which is no folder of data"),
        ("{0}/" + "*/" * 40, "more than 32 parts with wildcards"),
        ("{0}/" + "*/" * 31 + "*.txt", "looked at 101 names and found 0 of data"),
    ],
)
def test_a_glob_without_end_is_refused_by_name(tmp_path, monkeypatch, pattern, said):
    if said.startswith("looked"):
        monkeypatch.setattr(globs, "MOST_OTHERS", 100)
    for name in ("x.txt", "y.txt", "z.txt"):
        (tmp_path / name).symlink_to(".")
    monkeypatch.setattr(globs, "MOST_NAMES", 5000)
    with pytest.raises(DataError, match=re.escape("data.source=") + f".*{said}") as error:
        find_shards(pattern.format(tmp_path), "text")
    assert "\n" not in str(error.value)


def test_a_glob_that_finds_little_among_many_names_is_refused_and_one_that_finds_much_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(globs, "MOST_OTHERS", 100)
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text("text")
        for suffix in ("jpg", "json", "md", "npy"):
            (tmp_path / f"{number}.{suffix}").write_text("")
    assert len(find_shards(f"{tmp_path}/**/*.txt", "text")) == 40
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    with pytest.raises(DataError, match="looked at 101 names and found 0 of data; name a folder, or fewer"):
        find_shards(f"{tmp_path}/**/*.txt", "text")


def test_a_glob_a_folder_and_links_to_the_same_files_give_one_corpus(tmp_path):
    folder = write_txt(tmp_path / "data", TEXTS)
    whole = corpus_of(folder)
    assert corpus_of(folder / "*.txt").fingerprint == whole.fingerprint
    (folder / "again.txt").symlink_to(folder / "0.txt")
    os.link(folder / "1.txt", folder / "and_again.txt")
    (folder / ".hidden").write_bytes(b"\xff")
    assert len(corpus_of(folder)) == len(whole)


def test_the_fingerprint_moves_with_the_folder_and_changes_with_name_content_and_number(tmp_path):
    first = corpus_of(write_txt(tmp_path / "a", TEXTS)).fingerprint
    assert corpus_of(write_txt(tmp_path / "b", TEXTS)).fingerprint == first
    assert corpus_of(write_txt(tmp_path / "c", TEXTS[::-1])).fingerprint != first
    assert corpus_of(write_txt(tmp_path / "d", [*TEXTS[:3], TEXTS[3] + "x"])).fingerprint != first
    assert corpus_of(write_txt(tmp_path / "e", TEXTS[:3])).fingerprint != first
    renamed = write_txt(tmp_path / "f", TEXTS)
    (renamed / "0.txt").rename(renamed / "00.txt")
    assert corpus_of(renamed).fingerprint != first


def test_a_character_cut_by_the_scan_block_is_still_valid_text(tmp_path):
    text = "a" * (BLOCK - 1) + "é" + "b" * 10
    assert texts_of(corpus_of(write_txt(tmp_path / "data", [text]))) == [text]


def test_a_five_million_byte_document_is_read_by_range(tmp_path):
    corpus = corpus_of(write_txt(tmp_path / "data", ["0123456789" * 500_000]))
    assert corpus.size_D.tolist() == [5_000_000]
    assert corpus.read(0, 4_999_990) == b"0123456789"


def test_the_standard_library_is_a_corpus_of_many_files_with_prose_and_no_tests():
    corpus = corpus_of("stdlib")
    assert len(corpus) > 500 and int(corpus.size_D.sum()) > 5_000_000 and corpus.bad == ()
    assert "asyncio/events.py" in corpus.files and "pydoc_data/topics/lambda" in corpus.files
    assert not [name for name in corpus.files if "/tests/" in name or "site-packages" in name or "_sysconfig" in name]


def test_the_standard_library_is_the_same_corpus_in_every_process():
    code = "from tests.data.test_data_sources import corpus_of; print(corpus_of('stdlib').fingerprint)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == corpus_of("stdlib").fingerprint


def test_the_default_data_set_opens_and_packs_without_a_socket(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the data set opened a socket")

    monkeypatch.setattr("socket.socket", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    dataset = open_dataset(DataConfig(), 64, 257)
    assert dataset.train.row(0)["weights"].sum() > 0 and dataset.held_out.row(0)["weights"].sum() > 0


def test_the_description_names_files_bytes_and_digest():
    dataset = open_dataset(DataConfig(), 64, 257)
    line = dataset.describe()
    assert f"{len(dataset.corpus.files):,} files" in line and f"{int(dataset.corpus.size_D.sum()):,} bytes" in line
    assert dataset.corpus.fingerprint in line and "\n" not in line


def test_importing_the_package_loads_neither_grain_nor_array_record():
    code = "import sys, mm01_jax.data.dataset; print({'grain', 'array_record'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: (folder / "1.txt").write_text("other"), "changed: 1.txt"),
        (lambda folder: (folder / "1.txt").unlink(), "gone: 1.txt"),
        (lambda folder: (folder / "9.txt").write_text("more"), "new: 9.txt"),
        (lambda folder: [(folder / f"n{i}.txt").write_text(str(i)) for i in range(6)], "and 2 more"),
    ],
)
def test_a_data_set_that_changed_since_the_run_began_is_refused_by_the_files_that_changed(tmp_path, change, named):
    folder = write_txt(tmp_path / "data", TEXTS)
    config = DataConfig(source=str(folder), held_out=0.0)
    saved = json.loads(json.dumps(open_dataset(config, 8, 257).manifest))
    check_unchanged(saved, open_dataset(config, 8, 257).manifest)
    change(folder)
    with pytest.raises(DataError, match=named):
        check_unchanged(saved, open_dataset(config, 8, 257).manifest)


@pytest.mark.parametrize("files", [{"0.txt": 5}, {"0.txt": {}}, [1, 2], "0.txt", 7, None, {"a\nb": [1]}])
def test_what_a_forged_manifest_says_of_its_files_is_a_refusal_too(tmp_path, files):
    config = DataConfig(source=str(write_txt(tmp_path / "data", TEXTS)), held_out=0.0)
    manifest = open_dataset(config, 8, 257).manifest
    with pytest.raises(DataError, match="is not what this run began with: ") as refused:
        check_unchanged(manifest | {"files": files, "fingerprint": "other"}, manifest)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("key", "value"), [("seed", 1), ("held_out", 0.5), ("packing", 0), ("tokenizer", "x")])
def test_a_setting_that_moves_documents_is_refused_on_resume_by_its_name(tmp_path, key, value):
    config = DataConfig(source=str(write_txt(tmp_path / "data", TEXTS)), held_out=0.0)
    manifest = open_dataset(config, 8, 257).manifest
    with pytest.raises(DataError, match=key):
        check_unchanged(manifest | {key: value}, manifest)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("stdlb", "Did you mean 'stdlib'"),
        ("{tmp}/nothing/*.txt", "neither 'stdlib' nor a path"),
        ("{tmp}/data/0.tx", "0.txt'"),
        ("{tmp}/empty", "directory without .txt, .jsonl, .jsonl.gz"),
        ("{tmp}/mixed", "suffix '.gz'.*allowed are .txt"),
    ],
)
def test_a_source_that_names_no_data_is_refused_with_what_is_allowed(tmp_path, source, said):
    write_txt(tmp_path / "data", TEXTS)
    (tmp_path / "empty").mkdir()
    (write_txt(tmp_path / "mixed", TEXTS) / "5.txt.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=said):
        open_dataset(DataConfig(source=source.format(tmp=tmp_path)), 8, 257)


def test_the_near_name_of_a_source_is_looked_for_among_some_of_a_folder(tmp_path, monkeypatch):
    for number in range(1200):
        (tmp_path / f"document-{number:06}.text").touch()
    asked = []
    monkeypatch.setattr(difflib, "get_close_matches", lambda word, names, **_: asked.extend(names) or [])
    with pytest.raises(ValueError, match="neither 'stdlib' nor a path"):
        find_shards(f"{tmp_path}/document-000000.txt", "text")
    assert len(asked) == 1001


@pytest.mark.parametrize("kind", ["jsonl", "arrayrecord"])
def test_a_five_million_token_record_is_read_once_for_all_its_rows(tmp_path, monkeypatch, kind):
    write = {"jsonl": write_jsonl, "arrayrecord": write_array_record}[kind]
    path = write(tmp_path / f"data.{kind}", ["0123456789" * 500_000])
    rows = open_dataset(DataConfig(source=str(path), held_out=0.0), 1000, 257).train
    reads, read = [], Corpus.read
    monkeypatch.setattr(Corpus, "read", lambda *args: reads.append(args[1:]) or read(*args))
    made = [rows.row(i)["tokens"] for i in range(5_000)]
    assert reads == [(0,)]
    assert (np.concatenate(made).reshape(-1, 10) == np.arange(48, 58)).all()


@pytest.mark.parametrize("side", ["before", "now"])
def test_changed_data_of_more_files_than_are_listed_is_refused(tmp_path, side):
    (tmp_path / "a.txt").write_text("a text")
    config = DataConfig(source=str(tmp_path / "a.txt"), held_out=0.0)
    manifest = open_dataset(config, 8, 257).manifest
    other = manifest | {"fingerprint": "other"}
    unlisted = {"files": {}}
    check_unchanged(manifest | unlisted, manifest | unlisted)
    with pytest.raises(DataError, match="the fingerprint was 'other', is "):
        check_unchanged(other | unlisted, manifest | (unlisted if side == "now" else {}))
    with pytest.raises(DataError, match="the fingerprint was 'other', is "):
        check_unchanged(other, manifest)
