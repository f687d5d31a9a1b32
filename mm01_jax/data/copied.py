"""Files whose documents come in their order alone: each text is copied once, into a file without a name, to be read by
position as training does. `mm01-tokenize` reads them as they come and copies nothing.
"""

import os
import tempfile
import threading
from collections.abc import Iterator

from mm01_jax.data.text import DataError, Record, Seen, exact

MOST_COPIED = 8 << 30  # bytes, of all files of a process together


class _Copies:
    """One unnamed file in the folder for temporary files, which goes when the process does."""

    def __init__(self):
        self._lock, self._fd, self._size = threading.Lock(), -1, 0

    def add(self, text: bytes, name: str) -> int:
        """Where the text begins."""
        with self._lock:
            if self._size + len(text) > MOST_COPIED:
                raise DataError(
                    f"{name}: more than {MOST_COPIED >> 30} GiB of text in files that are read in their order alone; "
                    "make tokens of them first: mm01-tokenize reads them without a copy."
                )
            if self._fd < 0:
                with tempfile.TemporaryFile(buffering=0) as file:
                    self._fd = os.dup(file.fileno())
            at, left = self._size, memoryview(text)
            while left:
                left = left[self._write(left) :]
            return at

    def _write(self, text: memoryview) -> int:
        try:
            written = os.pwrite(self._fd, text, self._size)
        except OSError as error:
            error.filename = tempfile.gettempdir()
            raise
        self._size += written
        return written

    def read(self, at: int, size: int) -> bytes:
        return os.pread(self._fd, size, at)


_COPIES = _Copies()


class Copied:
    """The part of a `Shard` that is the same for all of them; they give `name`, `size` and `documents`."""

    reads_ranges = True
    name: str

    def documents(self, seen: Seen) -> Iterator[tuple[Record, bytes]]:
        raise NotImplementedError

    def scan(self, seen: Seen) -> Iterator[Record]:
        return map(self._copied, self.documents(seen))  # which lets go of a text before the next is made

    def _copied(self, found: tuple[Record, bytes]) -> Record:
        record, text = found
        return record if record.problem else record._replace(key=_COPIES.add(text, self.name))

    def read(self, key: int, start: int, stop: int, digest: bytes | None) -> bytes:
        del digest  # nobody else has the copy
        return exact(_COPIES.read(key + start, stop - start), self.name, stop - start)
