"""Rows of a Parquet file, as the process of `reading.py` reads them: some together, in bounded memory."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from mm01_jax.data.compressed import MOST_LINES, MOST_TIMES, MOST_UNPACKED
from mm01_jax.data.parquet_sizes import MOST_FOOTER, Pages, check_footer, check_pages
from mm01_jax.data.text import FILES, DataError
from mm01_jax.files import quoted, shown, why

_READ = 1 << 20  # bytes of a chunk at a time
_ROWS, _FEW = 256, 4096  # made together; that one after the other take little time
_TOGETHER = 1 << 24  # bytes of them, but for one; each may be the longest word of a dictionary
_WORD = 64  # bytes of a dictionary that are made in the time that one more word takes
_MADE_AGAIN = 1 << 29  # bytes of a dictionary that is made again with each batch, in all of them
_HOW = {"page_checksum_verification": True, "pre_buffer": False, "buffer_size": _READ}
_HOW |= {"thrift_string_size_limit": MOST_FOOTER, "thrift_container_size_limit": 1 << 15}  # of what a footer says


class Rows:
    """Those of the file at `path`, their text in the column `field`."""

    def __init__(self, name: str, path: pathlib.Path | str, field: str):
        self.name, self.path, self.field = name, path, field

    def batches(self) -> Iterator[tuple[int, list[bytes | None]]]:
        """(bytes of the file, texts) of the rows, some after the other.

        Raises:
          DataError: no whole Parquet file, or one that takes very much.
        """
        import pyarrow.parquet

        with FILES.open(self.path) as source, self._errors():
            size = os.fstat(source.fileno()).st_size
            check_footer(source.fileno(), self.name)
            file = pyarrow.parquet.ParquetFile(source, **_HOW)
            place = self._check(file, size)
            row = unpacked = told = 0
            for texts in _together(self._batches(file, source, place, size)):
                row, unpacked = row + len(texts), unpacked + sum(len(text or b"") for text in texts)
                if unpacked > max(MOST_UNPACKED, MOST_TIMES * size):
                    what = f"{row:,} rows hold {unpacked:,} bytes, the whole file has {size:,}"
                    raise DataError(f"{self.name}: {what}; allowed: at most {MOST_TIMES} times as many.")
                if row > MOST_LINES + size:
                    what = f"its {size:,} bytes have {row:,} rows and more"
                    raise DataError(f"{self.name}: {what}; allowed: {MOST_LINES:,}, and one a byte.")
                now = size * row // max(file.metadata.num_rows, 1)
                yield now - told, texts
                told = now
                del texts  # before the next are made
            if row != file.metadata.num_rows or row == 0:
                said = f"its footer says {file.metadata.num_rows:,} rows, it has {row:,}"
                raise DataError(f"{self.name} has no whole rows: {said}.")

    def _batches(self, file, source: BinaryIO, place: int, size: int) -> Iterator:
        """The rows of the column `place`, of groups whose pages have been looked at."""
        unpacked = 0
        for group in range(file.metadata.num_row_groups):
            said = file.metadata.row_group(group)
            pages = check_pages(source.fileno(), self.name, said.column(place))
            if (values := said.column(place).num_values) != said.num_rows:
                what = f"a group of {said.num_rows:,} rows has {values:,} values of {quoted(self.field)}"
                raise DataError(f"{self.name} has no whole rows: {what}.")
            unpacked += pages.unpacked
            if unpacked > max(MOST_UNPACKED, MOST_TIMES * size):
                what = f"its pages unpack to {unpacked:,} bytes and more, the whole file has {size:,}"
                raise DataError(f"{self.name}: {what}; allowed: at most {MOST_TIMES} times as many.")
            longest = pages.dictionary
            if longest > _TOGETHER // _ROWS and said.num_rows > _FEW:
                longest = _longest_word(source, file.metadata, group, self.field)
            rows = self._rows(file, said.num_rows, pages, longest)
            yield from file.iter_batches(rows, row_groups=[group], columns=[self.field], use_threads=False)

    def _rows(self, file, rows: int, pages: Pages, longest: int) -> int:
        """How many rows of so many are made together."""
        if _is_dictionary(file.schema_arrow.field(self.field).type):  # its writer's wish, and nothing changes it
            wanted = max(_ROWS, rows * (pages.dictionary + _WORD * pages.words) // _MADE_AGAIN)
        else:
            wanted = min(_ROWS, _TOGETHER // max(longest, 1))
        return max(1, min(wanted, int(_TOGETHER / max(pages.densest, 1))))

    def _check(self, file, size: int) -> int:
        """Which column it is; DataError where it is none of text, or says that it takes very much memory."""
        import pyarrow

        names = file.schema_arrow.names
        if names.count(self.field) > 1:
            found = f"{names.count(self.field)} columns of it are named {quoted(self.field)}"
            raise DataError(f"{self.name}: {found}; allowed: one.")
        if self.field not in names:
            others = [shown(name) for name in names[:8]]
            raise DataError(f"{self.name}: data.text_field={self.field!r} is no column of it; it has {others}.")
        kind = file.schema_arrow.field(self.field).type
        if _is_dictionary(kind):
            kind = kind.value_type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise DataError(f"{self.name}: the column {quoted(self.field)} is of {shown(kind)}, not of text.")
        place = next(n for n in range(file.metadata.num_columns) if file.schema.column(n).path == self.field)
        for group in range(file.metadata.num_row_groups):
            unpacked = file.metadata.row_group(group).column(place).total_uncompressed_size
            if unpacked > max(MOST_UNPACKED, MOST_TIMES * size):
                what = f"a column takes {unpacked:,} bytes, the whole file {size:,}"
                raise DataError(f"{self.name}: {what}; allowed: at most {MOST_TIMES} times as many.")
        return place

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """A context in which what the library says of a file becomes one line."""
        import pyarrow

        try:
            yield
        except MemoryError:  # one of pyarrow's, too
            raise
        except (
            pyarrow.ArrowException,
            OSError,
            EOFError,
            OverflowError,
            IndexError,
            UnicodeDecodeError,
        ) as error:
            raise DataError(f"{self.name} is no whole Parquet file: {shown(why(error))}.") from error


def _longest_word(source: BinaryIO, metadata, group: int, field: str) -> int:
    """Bytes of the longest word of a column's dictionary, which is made once for it."""
    import pyarrow.compute
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(source, metadata=metadata, read_dictionary=[field], **_HOW)
    column = next(file.iter_batches(1, row_groups=[group], columns=[field], use_threads=False)).column(0)
    return pyarrow.compute.max(pyarrow.compute.binary_length(_binary(column.dictionary))).as_py() or 0


def _together(batches: Iterator) -> Iterator[list[bytes | None]]:
    """The texts of each, a copy of a word for each row that has it, in lists of few more bytes than `_TOGETHER`."""
    for batch in batches:
        texts, size = [], 0
        for text in _texts(batch.column(0)):
            texts.append(text)
            size += len(text or b"")
            if size > _TOGETHER:
                yield texts
                texts, size = [], 0
        if texts:
            yield texts


def _texts(column) -> Iterator[bytes | None]:
    """The bytes of each row, UTF-8 or not; None where there is nothing."""
    if not _is_dictionary(column.type):
        return (text.as_py() for text in _binary(column))
    words = _binary(column.dictionary)
    return (words[index.as_py()].as_py() if index.is_valid else None for index in column.indices)


def _binary(words):
    import pyarrow

    large = pyarrow.types.is_large_string(words.type)
    return words.cast(pyarrow.large_binary() if large else pyarrow.binary())


def _is_dictionary(kind) -> bool:
    import pyarrow

    return pyarrow.types.is_dictionary(kind)
