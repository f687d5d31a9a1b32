"""Parquet files as documents: one column of text, a row a document (extra `parquet`)."""

import importlib.util
import os
import pathlib
from collections.abc import Iterator

from mm01_jax.data import reading
from mm01_jax.data.copied import Copied
from mm01_jax.data.cost import bounded
from mm01_jax.data.text import FILES, Record, Seen, examine


class ParquetText(Copied):
    """A `.parquet` file; its text is in the column `field`. A document's key is its row."""

    def __init__(self, name: str, path: pathlib.Path, field: str):
        self.name, self.path, self.field = name, path, field

    @property
    def size(self) -> int:
        return os.stat(self.path).st_size

    def documents(self, seen: Seen) -> Iterator[tuple[Record, bytes]]:
        if importlib.util.find_spec("pyarrow") is None:
            raise ValueError("a .parquet file needs the `parquet` extra: pip install 'mm01_jax[parquet]'.")
        with FILES.open(self.path):  # what cannot be opened is said here
            yield from bounded(self.name, self.size, self._documents(seen))

    def _documents(self, seen: Seen) -> Iterator[tuple[Record, bytes]]:
        row = 0
        for more, texts in reading.batches(self.name, self.path, self.field):
            for number, text in enumerate(texts, row):
                yield self._document(number, text)
            row += len(texts)
            seen(more)

    def _document(self, row: int, text: bytes | None) -> tuple[Record, bytes]:
        label = f"{self.name} row {row}"
        if text is None:
            return Record(row, label, 0, bytes(16), f"data.text_field={self.field!r} has no text (null in it)"), b""
        record = examine(row, label, [text])
        return record, b"" if record.problem else text
