"""Text files as documents that are read by position.

A shard is a file of UTF-8 documents, or a part of one; a `.txt` file holds one document. `scan` looks at every byte
once, in order; `read` then returns any byte range of one document, and sees that it is the one that was looked at.
Neither holds a file in memory.
"""

import codecs
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple, Protocol

from mm01_jax import holes
from mm01_jax.files import Door

BLOCK = 1 << 20  # bytes looked at together by `scan`
PROGRESS_SECONDS = 5.0  # between progress lines of a long look at files


class DataError(Exception):
    """Data on disk is damaged, unreadable, or not the data that a run began with."""

    exit_code = 3


class BadFile(DataError, ValueError):
    """A file that was named is there, and what it says cannot be: a ValueError where what is typed is looked at."""


class Unreadable(DataError):
    """A file that cannot be opened or is none."""


class _DataDoor(Door):
    """A door that no file passes which is mostly holes: no text is, and bounds are of a file's size."""

    def open(self, path, **how) -> BinaryIO:
        file = Door.open(self, path, **how)
        try:
            with self.errors(path):
                holes.refuse(file)
            return file
        except BaseException:
            file.close()
            raise


FILES = _DataDoor(Unreadable)


class Record(NamedTuple):
    """What `scan` found: where a document lies, or why it is none."""

    key: int  # where its shard finds it again: a byte offset or a record number
    label: str  # how a person finds it: "b.jsonl line 3"
    size: int  # bytes of UTF-8
    digest: bytes  # the first 16 bytes of the text's sha256
    problem: str | None  # why the record is refused


Seen = Callable[[int], None]


class Shard(Protocol):
    """A named sequence of documents."""

    name: str
    size: int  # bytes of its file
    reads_ranges: bool  # a range costs its own length, not that of the document

    def scan(self, seen: Seen) -> Iterator[Record]:
        """Every record in order, bad ones included; DataError when the file itself is broken.

        Args:
          seen: told how many bytes more have been looked at.
        """

    def documents(self, seen: Seen) -> Iterator[tuple[Record, bytes]]:
        """What `scan` gives, each with its whole text; of a bad record, nothing."""

    def read(self, key: int, start: int, stop: int, digest: bytes | None) -> bytes:
        """Bytes [start, stop) of the document at `key`; DataError where it is not the one of `digest` any more."""


def examine(key: int, label: str, blocks: Iterable[bytes], seen: Seen = lambda size: None) -> Record:
    """The record of a text given piece by piece; the pieces may cut a character. `seen` hears of each."""
    if isinstance(blocks, list) and len(blocks) == 1 and _is_text(whole := blocks[0]):  # a third of the time
        seen(len(whole))
        return Record(key, label, len(whole), hashlib.sha256(whole).digest()[:16], None)
    sha, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    size, problem = 0, None
    for block in blocks:
        if problem := _problem(decoder, block, size):
            break  # what follows is not read: it may be a terabyte of holes
        sha.update(block)
        size += len(block)
        seen(len(block))
    if problem is None and size == 0:
        problem = "it is empty"
    if problem is None and decoder.getstate()[0]:
        problem = f"its UTF-8 ends inside a character (at byte {size - len(decoder.getstate()[0])})"
    return Record(key, label, size, sha.digest()[:16], problem)


def _is_text(whole: bytes) -> bool:
    """Whether nothing is wrong with a text; what is, `examine` finds piece by piece."""
    if not whole or 0 in whole or whole.startswith(codecs.BOM_UTF8):
        return False
    try:
        return whole.isascii() or bool(whole.decode())
    except UnicodeDecodeError:
        return False


def _problem(decoder: codecs.IncrementalDecoder, block: bytes, size: int) -> str | None:
    if size == 0 and block.startswith(codecs.BOM_UTF8):
        return "it starts with a byte order mark (EF BB BF), which is not text"
    if (at := block.find(0)) >= 0:
        return f"it has a NUL byte (at byte {size + at}), so it is not text"
    pending = len(decoder.getstate()[0])
    try:
        decoder.decode(block)
    except UnicodeDecodeError as error:
        return f"it is not UTF-8 (at byte {size - pending + error.start}: {error.reason})"
    return None


def exact(text: bytes, name: str, num_bytes: int) -> bytes:
    if len(text) != num_bytes:
        raise DataError(f"{name} changed while in use: {num_bytes} bytes were indexed, {len(text)} are there now.")
    return text


def check_same(text: bytes, digest: bytes | None, name: str) -> None:
    """DataError where a whole text has another digest than when it was indexed; None: nothing is compared."""
    if digest is not None and hashlib.sha256(text).digest()[:16] != digest:
        raise DataError(f"{name} changed while in use: its text is another than the one that was indexed.")


class TextFile:
    """A `.txt` (or `.py`) file: one document."""

    reads_ranges = True

    def __init__(self, name: str, path: pathlib.Path | str):
        self.name, self.path = name, path
        self._mark: int | None = None  # of the content that was looked at

    @property
    def size(self) -> int:
        return os.stat(self.path).st_size

    def documents(self, seen: Seen) -> Iterator[tuple[Record, bytes]]:
        return _scanned_and_read(self, seen)

    def scan(self, seen: Seen) -> Iterator[Record]:
        with FILES.open(self.path) as file:
            self._mark = _mark(file)
            yield examine(0, self.name, iter(lambda: file.read(BLOCK) or b"", b""), seen)

    def read(self, key: int, start: int, stop: int, digest: bytes | None) -> bytes:
        del key
        with FILES.open(self.path, buffering=0) as file:
            if (mark := _mark(file)) != self._mark:  # somebody has touched it
                self._look_again(file, digest)
                self._mark = mark
            file.seek(start)
            return exact(file.read(stop - start), self.name, stop - start)

    def _look_again(self, file: BinaryIO, digest: bytes | None) -> None:
        found = examine(0, self.name, iter(lambda: file.read(BLOCK) or b"", b""))
        if found.problem or found.digest != digest:
            why = found.problem or "its text is another than the one that was indexed"
            raise DataError(f"{self.name} changed while in use: {why}.")


def _mark(file: BinaryIO) -> int:
    """Another one where a file has been written; no inode, which some network file systems make up anew."""
    status = os.fstat(file.fileno())
    return hash((status.st_size, status.st_mtime_ns))


class TextInMemory:
    """One document that has no file of its own."""

    reads_ranges = True

    def __init__(self, name: str, text: str):
        self.name, self.text = name, text.encode()
        self.size = len(self.text)

    def documents(self, seen: Seen) -> Iterator[tuple[Record, bytes]]:
        return _scanned_and_read(self, seen)

    def scan(self, seen: Seen) -> Iterator[Record]:
        yield examine(0, self.name, [self.text], seen)

    def read(self, key: int, start: int, stop: int, digest: bytes | None) -> bytes:
        del key, digest
        return self.text[start:stop]


def _scanned_and_read(shard: Shard, seen: Seen) -> Iterator[tuple[Record, bytes]]:
    """`Shard.documents` of a file that is one document: `scan` bounds what is read whole."""
    for record in shard.scan(seen):
        yield record, b"" if record.problem else shard.read(record.key, 0, record.size, record.digest)
