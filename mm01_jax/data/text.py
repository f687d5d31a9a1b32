"""Text files as documents that are read by position.

A shard is a file of UTF-8 documents: `.txt` holds one, `.jsonl` one a line. `scan` looks at every byte once, in
order; `read` then returns any byte range of one document, and sees that it is the one that was looked at. Neither holds
a file in memory.
"""

import codecs
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple, Protocol

from mm01_jax.files import SMALL, Door, parse_json, shown

BLOCK = 1 << 20  # bytes looked at together by `scan`
PROGRESS_SECONDS = 5.0  # between progress lines of a long look at files


class DataError(Exception):
    """Data on disk is damaged, unreadable, or not the data that a run began with."""

    exit_code = 3


class Unreadable(DataError):
    """A file that cannot be opened or is none."""


FILES = Door(Unreadable)
MOST_LINE = SMALL  # bytes of a line of .jsonl
MOST_SKIPPED = 1 << 30  # bytes of a line that is left out: a file with a longer one has no lines


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
    reads_ranges: bool  # a range costs its own length, not that of the document

    def scan(self, seen: Seen) -> Iterator[Record]:
        """Every record in order, bad ones included; DataError when the file itself is broken.

        Args:
          seen: told how many bytes more have been looked at.
        """

    def read(self, key: int, start: int, stop: int, digest: bytes | None) -> bytes:
        """Bytes [start, stop) of the document at `key`; DataError where it is not the one of `digest` any more."""


def examine(key: int, label: str, blocks: Iterable[bytes], seen: Seen = lambda size: None) -> Record:
    """The record of a text given piece by piece; the pieces may cut a character. `seen` hears of each."""
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


def _exact(text: bytes, name: str, num_bytes: int) -> bytes:
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

    def scan(self, seen: Seen) -> Iterator[Record]:
        with FILES.open(self.path) as file:
            self._mark = _mark(file)
            yield examine(0, self.name, iter(lambda: file.read(BLOCK), b""), seen)

    def read(self, key: int, start: int, stop: int, digest: bytes | None) -> bytes:
        del key
        with FILES.open(self.path, buffering=0) as file:
            if (mark := _mark(file)) != self._mark:  # somebody has touched it
                self._look_again(file, digest)
                self._mark = mark
            file.seek(start)
            return _exact(file.read(stop - start), self.name, stop - start)

    def _look_again(self, file: BinaryIO, digest: bytes | None) -> None:
        found = examine(0, self.name, iter(lambda: file.read(BLOCK), b""))
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

    def scan(self, seen: Seen) -> Iterator[Record]:
        yield examine(0, self.name, [self.text], seen)

    def read(self, key: int, start: int, stop: int, digest: bytes | None) -> bytes:
        del key, digest
        return self.text[start:stop]


class JsonLines:
    """A `.jsonl` file: one JSON object a line, its text under `field`."""

    reads_ranges = False

    def __init__(self, name: str, path: pathlib.Path, field: str):
        self.name, self.path, self.field = name, path, field

    def scan(self, seen: Seen) -> Iterator[Record]:
        with FILES.open(self.path) as file:
            for number, offset, line in lines(file):
                seen(len(line))
                label = f"{self.name} line {number}"
                try:
                    yield examine(offset, label, [self._text(line)])
                except ValueError as error:
                    yield Record(offset, label, 0, bytes(16), str(error))
            empty = file.tell() == 0
        if empty:
            raise DataError(f"{self.name} is empty: a .jsonl file has at least one line.")

    def read(self, key: int, start: int, stop: int, digest: bytes | None) -> bytes:
        with FILES.open(self.path) as file:
            file.seek(key)
            try:
                text = self._text(file.readline(MOST_LINE + 1))
            except ValueError as error:
                raise DataError(f"{self.name} changed while in use: the line at byte {key}: {error}.") from error
        check_same(text, digest, f"{self.name}, the line at byte {key},")
        return _exact(text[start:stop], self.name, stop - start)

    def _text(self, line: bytes) -> bytes:
        """The UTF-8 text of one line; ValueError says why there is none."""
        record = json_object(whole_line(line))
        if not isinstance(text := record.get(self.field), str):
            others = [shown(name) for name in sorted(record)[:8]]
            got = f"a {type(text).__name__} in it" if self.field in record else f"only {others}"
            raise ValueError(f"data.text_field={self.field!r} has no text ({got})")
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"its text has half a surrogate pair (character {error.start})") from error


def lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, offset, line) of a file; of a line that is too long, a piece that is too long as well."""
    number = offset = 0
    while line := file.readline(MOST_LINE + 1):
        began = offset
        number += 1
        yield number, offset, line
        offset += len(line)
        while len(line) > MOST_LINE and not line.endswith(b"\n"):
            line = file.readline(MOST_LINE + 1)
            offset += len(line)
            if offset - began > MOST_SKIPPED:
                raise Unreadable(f"line {number} has more than {MOST_SKIPPED:,} bytes")


def whole_line(line: bytes) -> bytes:
    """A line as it stands; ValueError where it is blank or longer than any is read."""
    if len(line) > MOST_LINE:
        raise ValueError(f"the line has more than {MOST_LINE:,} bytes; as a .txt file a document may be longer")
    if not line.strip():
        raise ValueError("the line is blank")
    return line


def json_object(text: bytes) -> dict[str, Any]:
    """The JSON object of a line or record; ValueError says why there is none."""
    try:
        fields = parse_json(text)
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"it is a JSON {type(fields).__name__}, not an object")
    return fields
