"""What a Parquet file says of its sizes, read before its library, which believes a footer and unpacks a page whole.

Footer and headers of pages are structs of thrift's compact protocol: fields with numbers, each a number, a text, a list
or a struct. What is not asked for is passed over, whatever it is.
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from mm01_jax.data.text import DataError

_LETTERS = b"PAR1"
MOST_FOOTER = 1 << 24  # bytes of it, which is read whole and takes five times as much
_MOST_TAKEN, _SMALL_FOOTER = 128 << 20, 1 << 18  # bytes in memory that it may take; so few take less, whatever they say
_TAKES, _IN_LIST, _OF_COLUMN = 32, 100, 900  # bytes of a value; of a struct in a list; where it may be a column
_COLUMN = 4  # depth of the columns of row groups
_MOST_PAGE, _MOST_TIMES = 1 << 24, 32  # bytes that a page may unpack to; beyond, so many times its bytes on the disk
_HEADERS = (1 << 9, 1 << 16)  # bytes of a page's header: of most, and at most
_MOST_EMPTY = 16  # pages of a chunk that hold no values: its dictionary
_SLACK = 128  # bytes of a chunk that the library looks for beyond its end: an old writer forgot its first header
_LIST, _SET, _MAP, _STRUCT = range(9, 13)
_DEPTH = 12  # of structs and lists inside one another
_DICTIONARY, _ENCODINGS = 7, {5: 2, 8: 4}  # fields of a page's header: of a dictionary; of data, both kinds, and in it
_REPEATS = 7  # an encoding of a row as so many bytes of the one before and some more: of few bytes come very many


class _Compact:
    """Reads `raw`; DataError or IndexError where it is none of the protocol or would take more than `most` bytes."""

    def __init__(self, raw: bytes, most: int):
        self.raw, self.at, self._left = raw, 0, most

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Its fields that are numbers or structs."""
        fields, field = {}, 0
        while kind := self._byte():
            field = field + (kind >> 4) if kind >> 4 else self._number()
            fields[field] = self._value(kind & 15, depth + 1, of_field=True)
        return fields

    def _value(self, kind: int, depth: int, *, of_field: bool = False) -> Any:
        in_list = _OF_COLUMN if depth <= _COLUMN else _IN_LIST
        self._left -= in_list if kind == _STRUCT and not of_field else _TAKES
        if self._left < 0 or depth > _DEPTH:
            raise DataError("holds very many values" if depth <= _DEPTH else f"is more than {_DEPTH} deep")
        if kind in (1, 2):  # a truth stands in its field's own byte
            return None if of_field else self._skip(1)
        if kind in (4, 5, 6):
            return self._number()
        if kind in (_LIST, _SET, _MAP):
            return self._elements(kind, depth)
        if kind == _STRUCT:
            return self.struct(depth)
        if kind not in (3, 7, 8):
            raise DataError(f"has a value of the kind {kind}, which is none")
        return self._skip(self._varint() if kind == 8 else 1 if kind == 3 else 8)

    def _elements(self, kind: int, depth: int) -> None:
        if kind == _MAP:
            count = self._varint()
            kinds = divmod(self._byte(), 16) if count else ()
        else:
            count, element = divmod(self._byte(), 16)
            count, kinds = self._varint() if count == 15 else count, (element,)
        for _ in range(count):
            for element in kinds:
                self._value(element, depth + 1)

    def _skip(self, size: int) -> None:
        self.at += size

    def _byte(self) -> int:
        self.at += 1
        return self.raw[self.at - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 64, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise DataError("has a number of more than 64 bits")

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)


def check_footer(fd: int, name: str) -> None:
    """DataError where the footer of a file is very large, or what it holds would take very much memory."""
    size = os.fstat(fd).st_size
    if size < 12 or {os.pread(fd, 4, 0), os.pread(fd, 4, size - 4)} != {_LETTERS}:
        raise DataError(f"{name} is no whole Parquet file: it does not begin and end with {_LETTERS.decode()}.")
    footer = int.from_bytes(os.pread(fd, 4, size - 8), "little")  # its length, and four letters
    if footer > MOST_FOOTER:
        raise DataError(f"{name}: a footer of {footer:,} bytes; allowed: at most {MOST_FOOTER:,}.")
    if _SMALL_FOOTER < footer < size:
        try:
            _Compact(os.pread(fd, footer, size - 8 - footer), _MOST_TAKEN).struct()
        except (DataError, IndexError) as error:
            what = "ends early" if isinstance(error, IndexError) else error
            raise DataError(f"{name}: its footer, of {footer:,} bytes, {what}: row groups, columns.") from None


class Pages(NamedTuple):
    """What the pages of a column's chunk take."""

    unpacked: int  # bytes of all of them
    dictionary: int  # of the one that holds no rows
    words: int  # in it
    densest: float  # bytes a row of the page in which that is most


def check_pages(fd: int, name: str, column) -> Pages:
    """What a column (as the library has it) takes; DataError where one page unpacks to very many times its size."""
    size, whole, dictionary, words, densest = os.fstat(fd).st_size, 0, 0, 0, 0
    for at, packed, unpacked, rows, held in _pages(fd, name, column):
        if at + packed > size:
            raise DataError(f"{name}: a page of {packed:,} bytes (at byte {at:,}); the whole file has {size:,}.")
        if packed < 0 or not 0 <= unpacked <= max(_MOST_PAGE, _MOST_TIMES * packed):
            what = f"a page of {packed:,} bytes (at byte {at:,}) unpacks to {unpacked:,}"
            raise DataError(f"{name}: {what}; allowed: at most {_MOST_TIMES} times as many, or {_MOST_PAGE:,}.")
        whole += unpacked
        densest = max(densest, unpacked / rows) if rows else densest
        dictionary, words = (dictionary, words) if rows else (dictionary + unpacked, words + held)
    return Pages(whole, dictionary, words, densest)


def _pages(fd: int, name: str, column) -> Iterator[tuple[int, int, int, int, int]]:
    """(where, bytes, bytes unpacked, rows, words of a dictionary) of a column's pages that the library would read."""
    at, first = column.data_page_offset, column.dictionary_page_offset
    at, values, empty = first if first and 0 < first < at else at, 0, 0
    end = at + column.total_compressed_size + _SLACK
    while values < column.num_values and at < end:
        header, size = _header(fd, name, at)
        packed, unpacked = header.get(3, -1), header.get(2, -1)
        for kind, encoding in _ENCODINGS.items():
            if header.get(kind, {}).get(encoding) == _REPEATS:
                what = f"a page (at byte {at:,}) is written as DELTA_BYTE_ARRAY, whose rows repeat one another"
                raise DataError(f"{name}: {what}; allowed: plain and dictionary encoding.")
        held = sum(max(0, header[kind].get(1, 0)) for kind in _ENCODINGS if kind in header)
        yield at, packed, unpacked, held, max(0, header[_DICTIONARY].get(1, 0)) if _DICTIONARY in header else 0
        values, empty, at = values + held, empty + (not held), at + size + packed
        if empty > _MOST_EMPTY:
            raise DataError(f"{name}: more than {_MOST_EMPTY} pages of a column (at byte {at:,}) hold no values.")


def _header(fd: int, name: str, at: int) -> tuple[dict[int, Any], int]:
    """The header of the page at a byte, and its length."""
    for most in _HEADERS:
        try:
            reader = _Compact(os.pread(fd, most, at), _TAKES * most)
            if not _is_header(fields := reader.struct()):
                raise DataError("has other values than it may")
            return fields, reader.at
        except IndexError:  # it is longer, or the file ends
            continue
        except DataError as error:
            raise DataError(f"{name}: the header of a page (at byte {at:,}) {error}.") from None
    raise DataError(f"{name}: the header of a page (at byte {at:,}) does not end.")


def _is_header(fields: dict[int, Any]) -> bool:
    """Whether what is asked of a page's header is what it is to be: whole numbers, of structs whole numbers."""
    numbers = [fields.get(field, 0) for field in (1, 2, 3)]
    for kind in (_DICTIONARY, *_ENCODINGS):
        inner = fields.get(kind, {})
        numbers += [inner.get(field, 0) for field in (1, 2, 4)] if isinstance(inner, dict) else [None]
    return all(isinstance(number, int) for number in numbers)
