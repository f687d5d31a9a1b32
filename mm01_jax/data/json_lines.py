"""Lines of JSON as documents: an object a line, its text under one key."""

import json
import operator
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from mm01_jax.data.cost import bounded
from mm01_jax.data.text import FILES, DataError, Record, Seen, Unreadable, check_same, exact, examine
from mm01_jax.files import parse_json, shown

MOST_LINE = 1 << 24  # bytes of a line, which take seven times as much as it becomes a text and UTF-8 again
MOST_SKIPPED = 1 << 28  # bytes of a line that is left out: a file with a longer one has no lines
_LONG = 1 << 20
Lines = Iterable[tuple[int, int, bytes]]  # number from 1, offset, line


class JsonLines:
    """A `.jsonl` file: one JSON object a line, its text under `field`.

    Of a part the lines that begin at one of the bytes [start, stop).
    """

    reads_ranges = False

    def __init__(self, name: str, path: pathlib.Path, field: str, start: int = 0, stop: int | None = None):
        self.name, self.path, self.field = name, path, field
        self._start, self._stop = start, stop

    @property
    def size(self) -> int:
        return os.stat(self.path).st_size

    def part(self, start: int, stop: int) -> "JsonLines":
        return JsonLines(self.name, self.path, self.field, start, stop)

    def scan(self, seen: Seen) -> Iterator[Record]:
        return map(operator.itemgetter(0), self.documents(seen))  # which lets go of a text before the next is made

    def documents(self, seen: Seen) -> Iterator[tuple[Record, bytes]]:
        with FILES.open(self.path) as file:
            found = lines(file, self._start, self._stop)
            documents = json_documents(found, self._text, seen, f"{self.name} line", self._start)
            yield from bounded(self.name, os.fstat(file.fileno()).st_size, documents)
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
        return exact(text[start:stop], self.name, stop - start)

    def _text(self, line: bytes) -> bytes:
        """The document of a line; ValueError says why there is none."""
        return text_of(line, self.field)


def json_documents(
    found: Lines, text: Callable[[bytes], bytes], seen: Seen, name: str, start: int = 0
) -> Iterator[tuple[Record, bytes]]:
    """`Shard.documents` of the `lines` of a file, or of its part from byte `start` on; `text` makes one of a line."""
    part = f" after byte {start}" if start else ""
    for number, offset, line in found:
        seen(len(line))
        label, content = f"{name} {number}{part}", b""
        try:
            content = text(line)
            record = examine(offset, label, [content])
        except ValueError as error:
            record = Record(offset, label, 0, bytes(16), str(error))
        yield record, b"" if record.problem else content


def text_of(line: bytes, field: str) -> bytes:
    """The UTF-8 text of one line; ValueError says why there is none."""
    record = json_object(whole_line(line))
    if not isinstance(text := record.get(field), str):
        others = [shown(name) for name in sorted(record)[:8]]
        got = f"a {type(text).__name__} in it" if field in record else f"only {others}"
        raise ValueError(f"data.text_field={field!r} has no text ({got})")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"its text has half a surrogate pair (character {error.start})") from error


def lines(file: BinaryIO, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, offset, line) of the lines of a file that begin at one of the bytes [start, stop).

    Of a line that is too long comes a piece that is too long as well.
    """
    number, offset = 0, start
    if start:  # a line that began before is another part's
        file.seek(start - 1)
        offset = start - 1 + _skip_line(file, "the line before")
    while (stop is None or offset < stop) and (line := file.readline(MOST_LINE + 1)):
        number += 1
        if len(line) > _LONG and b"\0" in line:  # a hole, most of all: each next line may be one, too, at no cost
            raise Unreadable(f"line {number} has {len(line):,} bytes and more, and a NUL byte among them: no text")
        yield number, offset, line
        offset += len(line)
        if len(line) > MOST_LINE and not line.endswith(b"\n"):
            offset += _skip_line(file, f"line {number}", MOST_SKIPPED - len(line))


def _skip_line(file: BinaryIO, which: str, most: int = MOST_SKIPPED) -> int:
    """Reads up to the end of a line; its bytes."""
    size = 0
    while piece := file.readline(MOST_LINE + 1):
        size += len(piece)
        if size > most:
            raise Unreadable(f"{which} has more than {MOST_SKIPPED:,} bytes")
        if piece.endswith(b"\n"):
            break
    return size


def whole_line(line: bytes) -> bytes:
    """A line as it stands; ValueError where it is blank or longer than any is read."""
    if len(line) > MOST_LINE:
        raise ValueError(f"the line has more than {MOST_LINE:,} bytes; as a .txt file a document may be longer")
    if not line or line.isspace():
        raise ValueError("the line is blank")
    return line


def json_value(line: bytes) -> Any:
    """What a line says in JSON; ValueError says why that is nothing, and in which column: its file knows the line."""
    try:
        return parse_json(line)  # as it stands: without its end it would be a copy
    except json.JSONDecodeError as error:
        column = min(error.pos, len(error.doc.rstrip())) + 1
        raise ValueError(f"{error.msg.removesuffix(' at')} at column {column}") from error


def json_object(text: bytes) -> dict[str, Any]:
    """The JSON object of a line or record; ValueError says why there is none."""
    try:
        fields = json_value(text)
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"it is a JSON {type(fields).__name__}, not an object")
    return fields
