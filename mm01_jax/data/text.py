"""Text files as documents that are read by position.

A shard is a file of UTF-8 documents: `.txt` holds one, `.jsonl` one a line. `scan` looks at every byte once, in
order; `read` then returns any byte range of one document. Neither holds a file in memory.
"""

import codecs
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

BLOCK = 1 << 20  # bytes looked at together by `scan`


class DataError(Exception):
    """Data on disk is damaged, unreadable, or not the data that a run began with."""

    exit_code = 3


class Record(NamedTuple):
    """What `scan` found: where a document lies, or why it is none."""

    key: int  # where its shard finds it again: a byte offset or a record number
    label: str  # how a person finds it: "b.jsonl line 3"
    size: int  # bytes of UTF-8
    digest: bytes  # the first 16 bytes of the text's sha256
    problem: str | None  # why the record is refused


class Shard(Protocol):
    """A named sequence of documents."""

    name: str
    reads_ranges: bool  # a range costs its own length, not that of the document

    def scan(self) -> Iterator[Record]:
        """Every record in order, bad ones included; DataError when the file itself is broken."""

    def read(self, key: int, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of the document at `key`."""


def examine(key: int, label: str, blocks: Iterable[bytes]) -> Record:
    """The record of a text given piece by piece; the pieces may cut a character."""
    sha, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    size, problem = 0, None
    for block in blocks:
        problem = problem or _problem(decoder, block, size)
        sha.update(block)
        size += len(block)
    if problem is None and decoder.getstate()[0]:
        problem = f"its UTF-8 ends inside a character (at byte {size - len(decoder.getstate()[0])})"
    if size == 0:
        problem = "it is empty"
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


class TextFile:
    """A `.txt` (or `.py`) file: one document."""

    reads_ranges = True

    def __init__(self, name: str, path: pathlib.Path):
        self.name, self.path = name, path

    def scan(self) -> Iterator[Record]:
        with self.path.open("rb") as file:
            yield examine(0, self.name, iter(lambda: file.read(BLOCK), b""))

    def read(self, key: int, start: int, stop: int) -> bytes:
        del key
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            return _exact(file.read(stop - start), self.name, stop - start)


class TextInMemory:
    """One document that has no file of its own."""

    reads_ranges = True

    def __init__(self, name: str, text: str):
        self.name, self.text = name, text.encode()

    def scan(self) -> Iterator[Record]:
        yield examine(0, self.name, [self.text])

    def read(self, key: int, start: int, stop: int) -> bytes:
        del key
        return self.text[start:stop]


class JsonLines:
    """A `.jsonl` file: one JSON object a line, its text under `field`."""

    reads_ranges = False

    def __init__(self, name: str, path: pathlib.Path, field: str):
        self.name, self.path, self.field = name, path, field

    def scan(self) -> Iterator[Record]:
        offset = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                label = f"{self.name} line {number}"
                try:
                    yield examine(offset, label, [self._text(line)])
                except ValueError as error:
                    yield Record(offset, label, 0, bytes(16), str(error))
                offset += len(line)
        if offset == 0:
            raise DataError(f"{self.name} is empty: a .jsonl file has at least one line.")

    def read(self, key: int, start: int, stop: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(key)
            try:
                text = self._text(file.readline())
            except ValueError as error:
                raise DataError(f"{self.name} changed while in use: the line at byte {key}: {error}.") from error
        return _exact(text[start:stop], self.name, stop - start)

    def _text(self, line: bytes) -> bytes:
        """The UTF-8 text of one line; ValueError says why there is none."""
        if not line.strip():
            raise ValueError("the line is blank")
        record = json_object(line)
        if not isinstance(text := record.get(self.field), str):
            got = f"only {sorted(record)[:8]}" if self.field not in record else f"a {type(text).__name__} in it"
            raise ValueError(f"data.text_field={self.field!r} has no text ({got})")
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"its text has half a surrogate pair (character {error.start})") from error


def json_object(text: bytes) -> dict[str, Any]:
    """The JSON object of a line or record; ValueError says why there is none."""
    try:
        fields = json.loads(text.decode())  # json.loads of bytes would guess at UTF-16 and drop a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (at byte {error.start}: {error.reason})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"it is a JSON {type(fields).__name__}, not an object")
    return fields
