"""Sources by URL: a small object store that answers as it should, late, wrong or not at all."""

import io
import time

import fsspec
import pytest

from mm01_jax.config import DataConfig
from mm01_jax.data import remote
from mm01_jax.data.corpus import scan_corpus
from mm01_jax.data.dataset import check_unchanged, open_dataset
from mm01_jax.data.sources import find_shards
from mm01_jax.data.text import DataError
from mm01_jax.data.tokenize.__main__ import main
from tests.data.text_folder import SHARD_BYTES, contents, tokenized, write_texts


class Store(fsspec.AbstractFileSystem):
    """FILES by path; each request for one of FAULTS fails as the next of its words says."""

    protocol = "fake"
    cachable = False
    FILES: dict[str, bytes] = {}
    FAULTS: dict[str, list[str]] = {}
    asked: list[str] = []

    def info(self, path, **_):
        path = self._strip_protocol(path)
        if path in self.FILES:
            size = len(self.FILES[path])
            return {"name": path, "type": "file", "size": size + self._fault(path, ("larger",)) * 7}
        if any(name.startswith(f"{path}/") for name in self.FILES):
            return {"name": path, "type": "directory", "size": 0}
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path)
        below = {name.removeprefix(f"{path}/").partition("/")[0] for name in self.FILES if name.startswith(f"{path}/")}
        names = sorted(f"{path}/{name}" for name in below)
        return [self.info(name) for name in names] if detail else names

    def cat_file(self, path, start=None, end=None, **_):
        path = self._strip_protocol(path)
        self.asked.append(path)
        if self._fault(path, ("late",)):
            time.sleep(2.0)
        if self._fault(path, ("error",)):
            raise OSError("503 slow down")
        if self._fault(path, ("gone",)):
            raise FileNotFoundError(path)
        raw = self.FILES[path][start:end]
        return raw[: len(raw) // 2] if self._fault(path, ("short",)) else raw

    def _open(self, path, mode="rb", **_):
        return io.BytesIO(self.FILES[path])

    def _fault(self, path, words):
        left = self.FAULTS.get(path, [])
        return bool(left and left[0] in words and left.pop(0))


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The store with a folder that also lies on the disk; its path."""
    fsspec.register_implementation("fake", Store, clobber=True)
    monkeypatch.setattr(remote, "PROTOCOLS", (*remote.PROTOCOLS, "fake"))
    monkeypatch.setattr(remote, "SECONDS", 0.6)
    monkeypatch.setattr(remote, "PAUSE", 0.001)
    folder = write_texts(tmp_path / "texts")
    files = {f"bucket/texts/{p.name}": p.read_bytes() for p in folder.iterdir()}
    monkeypatch.setattr(Store, "FILES", files)
    monkeypatch.setattr(Store, "FAULTS", {})
    monkeypatch.setattr(Store, "asked", [])
    return folder


def corpus_of(source):
    return scan_corpus(find_shards(str(source), "text"), 0, print)


@pytest.mark.parametrize("source", ["fake://bucket/texts", "fake://bucket/texts/*", "fake://bucket/texts/"])
def test_a_folder_and_a_glob_by_url_are_the_corpus_of_the_folder_on_the_disk(store, source):
    near, far = corpus_of(store), corpus_of(source)
    assert far.fingerprint == near.fingerprint and far.files == near.files
    assert [far.read(document) for document in range(len(far))] == [
        near.read(document) for document in range(len(near))
    ]


def test_one_file_by_url_is_taken_and_hidden_ones_are_left_out(store):
    Store.FILES["bucket/texts/.hidden.txt"] = b"\xff"
    Store.FILES["bucket/texts/.deeper/a.txt"] = b"\xff"
    Store.FILES["bucket/texts/_SUCCESS"] = b""
    assert list(corpus_of("fake://bucket/texts").files) == list(corpus_of(store).files)
    assert list(corpus_of("fake://bucket/texts/c.jsonl").files) == ["c.jsonl"]


def test_a_run_may_change_between_a_folder_and_its_copy_in_a_store(store):
    near, far = (
        open_dataset(DataConfig(source=source), 64, 257, log=lambda _: None)
        for source in (str(store), "fake://bucket/texts")
    )
    check_unchanged(near.manifest, far.manifest)
    assert (near.train.row(5)["tokens"] == far.train.row(5)["tokens"]).all()


def test_tokens_of_a_store_are_those_of_the_disk(store, tmp_path):
    tokenized(store, "bytes", tmp_path / "near", shard_bytes=1 << 30)
    tokenized("fake://bucket/texts", "bytes", tmp_path / "far", shard_bytes=1 << 30)
    assert contents(tmp_path / "far") == contents(tmp_path / "near")


def test_the_command_reads_a_url_in_workers(store, tmp_path):
    flags = ["--tokenizer=bytes", f"--shard-bytes={SHARD_BYTES}", "--workers=2"]
    assert main([f"--source=file://{store}", f"--out={tmp_path / 'far'}", *flags]) == 0
    tokenized(f"file://{store}", "bytes", tmp_path / "near")
    assert contents(tmp_path / "far") == contents(tmp_path / "near")


@pytest.mark.parametrize("fault", ["late", "error", "short"])
def test_what_fails_a_few_times_is_asked_again(store, fault):
    Store.FAULTS = {"bucket/texts/b1.txt": [fault] * (remote.TRIES - 1)}
    assert corpus_of("fake://bucket/texts").fingerprint == corpus_of(store).fingerprint
    assert Store.asked.count("bucket/texts/b1.txt") == remote.TRIES


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("late", "cannot be read, 5 times: no answer in"),
        ("error", "cannot be read, 5 times: 503 slow down"),
        ("short", r"cannot be read, 5 times: \d+ bytes came of"),
        ("gone", "cannot be read: missing"),
    ],
)
def test_what_fails_again_and_again_is_refused_by_its_url(store, fault, said):
    Store.FAULTS = {"bucket/texts/b1.txt": [fault] * 9}
    with pytest.raises(DataError, match=f"fake://bucket/texts/b1.txt {said}") as error:
        corpus_of("fake://bucket/texts")
    assert "\n" not in str(error.value)


def test_a_file_that_grows_while_it_is_read_is_refused(store):
    shards = find_shards("fake://bucket/texts", "text")
    Store.FILES["bucket/texts/b1.txt"] += b"more"
    with pytest.raises(DataError, match="fake://bucket/texts/b1.txt changed while in use"):
        scan_corpus(shards, 0, print)


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        ("nothing://bucket/a.txt", ValueError, "nothing:// is not read; allowed are gs, gcs, s3"),
        ("zip://a.txt::fake://bucket/a.zip", ValueError, "zip:// is not read"),
        ("simplecache::fake://bucket/texts", ValueError, "neither 'stdlib' nor a path"),
        ("fake://bucket/none", ValueError, "names no file"),
        ("fake://bucket/none/*.txt", ValueError, "names no file"),
        ("fake://bucket", ValueError, "notes.csv' has the suffix|has the suffix '.csv'"),
        ("fake://tokens", ValueError, "a folder of tokens is read from a local disk"),
    ],
)
def test_a_url_that_names_no_text_is_refused(store, source, error, said):
    Store.FILES |= {"bucket/notes.csv": b"a", "tokens/tokens.json": b"{}"}
    with pytest.raises(error, match=said):
        corpus_of(source)


def test_a_store_whose_library_is_missing_says_what_to_install(store, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match="gs://bucket/a.txt.*gcsfs"):
        corpus_of("gs://bucket/a.txt")
