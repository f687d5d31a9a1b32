"""ArrayRecord files as documents: one record is one UTF-8 text."""

import os
import pathlib
import threading
from collections.abc import Iterator

from array_record.python.array_record_module import ArrayRecordReader

from mm01_jax.data.text import FILES, DataError, Record, Seen, check_same, examine

# Records lie in blocks of this many bytes and the index is in the last: a whole file is a multiple of it.
FILE_BLOCK = 1 << 16
READ = 256  # records read together by `scan`, at most
READ_BYTES = 16 << 20  # that they may take
RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"


class ArrayRecordFile:
    """An `.arrayrecord` file.

    A truncated one opens without an error and claims 0 records (all of 60 measured truncations): a size that is no
    multiple of 64 KiB and a count of 0 are therefore refused. Each record is behind a hash of its own.
    """

    reads_ranges = False

    def __init__(self, name: str, path: pathlib.Path):
        self.name, self.path = name, path
        self._lock = threading.Lock()
        self._reader: ArrayRecordReader | None = None

    def scan(self, seen: Seen) -> Iterator[Record]:
        for number, text in self.contents():
            yield examine(number, f"{self.name} record {number}", [text], seen)

    def contents(self) -> Iterator[tuple[int, bytes]]:
        """(number, bytes) of every record; DataError when the file itself is broken."""
        with FILES.open(self.path) as file:
            size = os.fstat(file.fileno()).st_size
        if size == 0 or size % FILE_BLOCK:
            raise DataError(
                f"{self.name} is not a whole ArrayRecord file: {size} bytes, not a multiple of {FILE_BLOCK}."
            )
        count = self._open().num_records()
        if count == 0:
            raise DataError(f"{self.name} has no records: the file is truncated, damaged or was never closed.")
        start, together = 0, 1
        while start < count:
            records = self._read(start, min(start + together, count))
            yield from enumerate(records, start=start)
            start += len(records)
            # A small file may hold large records: as many are read as take little, by the last ones.
            mean = sum(map(len, records)) // len(records) + 1
            together = max(1, min(READ, 2 * together, READ_BYTES // mean))

    def read(self, key: int, start: int, stop: int, digest: bytes | None) -> bytes:
        whole = self._read(key, key + 1)[0]
        check_same(whole, digest, f"{self.name}, record {key},")
        text = whole[start:stop]
        if len(text) != stop - start:
            raise DataError(f"{self.name} changed while in use: record {key} is shorter than when it was indexed.")
        return text

    def _open(self) -> ArrayRecordReader:
        if self._reader is None:
            try:
                self._reader = ArrayRecordReader(str(self.path), RANDOM_ACCESS)
            except (RuntimeError, ValueError) as error:
                raise DataError(f"{self.name} is not an ArrayRecord file: {error}") from error
        return self._reader

    def _read(self, start: int, stop: int) -> list[bytes]:
        with self._lock:  # one reader has one file position
            try:
                records = self._open().read(start, stop)
            except (RuntimeError, ValueError, IndexError) as error:
                raise DataError(f"{self.name} is damaged in records {start} to {stop - 1}: {error}") from error
        if len(records) != stop - start:
            raise DataError(f"{self.name} is damaged: records {start} to {stop - 1} gave {len(records)} records.")
        return records
