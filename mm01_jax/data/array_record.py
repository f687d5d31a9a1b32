"""ArrayRecord files as documents: one record is one UTF-8 text."""

import collections
import operator
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import BinaryIO

from mm01_jax.data import reading
from mm01_jax.data.compressed import MOST_LINES
from mm01_jax.data.cost import bounded
from mm01_jax.data.text import FILES, DataError, Record, Seen, check_same, examine

# Records lie in blocks of this many bytes and the index is in the last: a whole file is a multiple of it.
FILE_BLOCK = 1 << 16
_READ = 1 << 19  # records read together, at most: of chunks, which are unpacked whole at every read
_READ_BYTES = 1 << 23  # that they may take, but for one chunk
# A chunk that unpacks to more than this, and to so many times its size on disk, is a bomb.
_MOST_UNPACKED, _MOST_TIMES = 1 << 24, 32
_BLOCK_HEADER, _CHUNK_HEADER = 24, struct.Struct("<8xQ8xQQ")  # bytes; of a chunk: of data, type and records, unpacked


class ArrayRecordFile:
    """An `.arrayrecord` file.

    A truncated one opens without an error and claims 0 records (all of 60 measured truncations): a size that is no
    multiple of 64 KiB and a count of 0 are therefore refused. Each record is behind a hash of its own.
    """

    reads_ranges = False

    def __init__(self, name: str, path: pathlib.Path):
        self.name, self.path = name, path

    @property
    def size(self) -> int:
        return os.stat(self.path).st_size

    def scan(self, seen: Seen) -> Iterator[Record]:
        return map(operator.itemgetter(0), self.documents(seen))  # as JsonLines

    def documents(self, seen: Seen) -> Iterator[tuple[Record, bytes]]:
        for number, text in self.contents():
            yield examine(number, f"{self.name} record {number}", [text], seen), text

    def contents(self) -> Iterator[tuple[int, bytes]]:
        """(number, bytes) of every record; DataError when the file itself is broken."""
        with FILES.open(self.path) as file:
            size = os.fstat(file.fileno()).st_size
        if size == 0 or size % FILE_BLOCK:
            raise DataError(
                f"{self.name} is not a whole ArrayRecord file: {size} bytes, not a multiple of {FILE_BLOCK}."
            )
        count = reading.num_records(self.name, self.path)
        if count == 0:
            raise DataError(f"{self.name} has no records: the file is truncated, damaged or was never closed.")
        if count > MOST_LINES + size // 4:  # its index alone takes one of each
            what = f"its {size:,} bytes have {count:,} records"
            raise DataError(f"{self.name}: {what}; allowed: {MOST_LINES:,}, and one for four bytes.")
        yield from bounded(self.name, size, self._records(count))

    def _records(self, count: int) -> Iterator[tuple[int, bytes]]:
        start = 0
        for stop in self._parts(count):
            yield from enumerate(self._read(start, stop), start=start)
            start = stop

    def _parts(self, count: int) -> Iterator[int]:
        """Where the records that are read together end; DataError of a chunk that would take the memory."""
        found = stop = nbytes = whole = 0
        with FILES.open(self.path) as file:
            size = os.fstat(file.fileno()).st_size
            for records, packed, unpacked in _chunks_of_records(file):
                self._check_chunk(found, packed, unpacked)
                whole += unpacked
                self._check_whole(whole, size)
                if found > stop and nbytes + unpacked > _READ_BYTES:
                    yield (stop := found)
                    nbytes = 0
                found, nbytes = found + records, nbytes + unpacked
                self._check_index(count, found)
                while found - stop >= _READ:
                    yield (stop := stop + _READ)
                    nbytes = unpacked
        self._check_index(count, found, at_end=True)
        if stop < count:
            yield count

    def _check_chunk(self, found: int, packed: int, unpacked: int) -> None:
        if unpacked > max(_MOST_UNPACKED, _MOST_TIMES * packed):
            what = f"records from {found} on take {unpacked:,} bytes, packed into {packed:,}"
            raise DataError(f"{self.name}: {what}; allowed: at most {_MOST_TIMES} times as many.")

    def _check_whole(self, unpacked: int, size: int) -> None:
        """DataError of chunks that are much together, each of which is not."""
        if unpacked > max(_MOST_UNPACKED, _MOST_TIMES * size):
            what = f"its {size:,} bytes unpack to {unpacked:,} and more"
            raise DataError(f"{self.name}: {what}; allowed: at most {_MOST_TIMES} times as many.")

    def _check_index(self, count: int, found: int, *, at_end: bool = False) -> None:
        """DataError of an index that leaves out records, or has more than there are."""
        if found > count:
            what = f"its index has {count:,} records, its chunks have {found:,} and more"
            raise DataError(f"{self.name} is damaged: {what}.")
        if at_end and found < count:
            raise DataError(f"{self.name} is damaged in records {found} to {count - 1}: their chunk is none.")

    def check_chunks(self, count: int) -> None:
        """DataError of a chunk that would take the memory, for who reads records by their number; so many there are."""
        found = 0
        with FILES.open(self.path) as file:
            for records, packed, unpacked in _chunks_of_records(file):
                self._check_chunk(found, packed, unpacked)
                found += records
        self._check_index(count, found, at_end=True)

    def record(self, number: int) -> bytes:
        """The bytes of a record, whatever they are; DataError when they are not as they were written."""
        return self._read(number, number + 1)[0]

    def read(self, key: int, start: int, stop: int, digest: bytes | None) -> bytes:
        whole = self.record(key)
        check_same(whole, digest, f"{self.name}, record {key},")
        text = whole[start:stop]
        if len(text) != stop - start:
            raise DataError(f"{self.name} changed while in use: record {key} is shorter than when it was indexed.")
        return text

    def _read(self, start: int, stop: int) -> list[bytes]:
        records = reading.records(self.name, self.path, start, stop)
        if len(records) != stop - start:
            raise DataError(f"{self.name} is damaged: records {start} to {stop - 1} gave {len(records)} records.")
        return records


def _chunks_of_records(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """`_chunks` without the index, which has a record for each and one before, and what says where that lies."""
    held, number = collections.deque(), 0
    for chunk in _chunks(file):
        held.append(chunk)
        if len(held) > 2:
            number += 1
            yield held.popleft()
    if [records for records, _, _ in held][:-1] != [number + 1]:
        yield from held


def _chunks(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """(records, bytes on disk, bytes that they take) of every chunk of a Riegeli file, by its header alone."""
    at, size = 0, os.fstat(file.fileno()).st_size
    while at < size:
        head, place = b"", at
        while len(head) < _CHUNK_HEADER.size:  # a block's header may stand inside it
            place += _BLOCK_HEADER if place % FILE_BLOCK == 0 else 0
            file.seek(place)
            piece = file.read(min(_CHUNK_HEADER.size - len(head), FILE_BLOCK - place % FILE_BLOCK))
            if not piece:
                return
            head, place = head + piece, place + len(piece)
        packed, kind, unpacked = _CHUNK_HEADER.unpack(head)
        if kind & 255 not in b"smprt":  # zeros, say, of which there may be a terabyte
            return
        if kind & 255 in b"rt":
            yield kind >> 8, packed, unpacked + 8 * (kind >> 8)  # a record without a byte takes some, too
        at = max(_after(at, len(head) + packed), at + (kind >> 8))


def _after(at: int, nbytes: int) -> int:
    """Where so many bytes end that begin at `at`, the headers of blocks left out."""
    block, inside = divmod(at, FILE_BLOCK)
    blocks, rest = divmod(max(0, inside - _BLOCK_HEADER) + nbytes, FILE_BLOCK - _BLOCK_HEADER)
    return (block + blocks) * FILE_BLOCK + (_BLOCK_HEADER + rest if rest else 0)
