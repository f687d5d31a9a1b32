"""Lines of JSON in a compressed file, `.jsonl.gz` or `.jsonl.zst`, unpacked piece by piece in bounded memory.

A file that ends inside a compressed stream is refused, as is one that unpacks to very many times its size.
"""

import contextlib
import functools
import io
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from mm01_jax.data.copied import Copied
from mm01_jax.data.cost import bounded
from mm01_jax.data.json_lines import Lines, json_documents, lines, text_of
from mm01_jax.data.text import FILES, DataError, Record, Seen

_READ = 1 << 16
_PIECE = 1 << 20  # unpacked at a time, where the library has a bound
_ZSTD_READ = 1 << 8  # of .zst, whose library has none: so much unpacks to 8 MiB at most
_ZSTD_WINDOW = 1 << 27  # what `zstd --long` makes and `zstd -d` takes
# A file that unpacks to more than this, and to so many times what has been read of it, is a bomb.
MOST_UNPACKED, MOST_TIMES = 1 << 25, 100
# Each member of a file takes as long as many lines: so many may have less than so many bytes, `cat` of empty ones too.
_MOST_SMALL, _SMALL = 1 << 16, 1 << 5
MOST_LINES = 1 << 16  # and one of each byte on the disk: a line takes time and memory, however little it says


class CompressedLines(Copied):
    """A compressed file: one JSON object a line, its text under `field`. A document's key is its number, from 0."""

    def __init__(self, name: str, path: pathlib.Path, field: str):
        self.name, self.path, self.field = name, path, field

    @property
    def size(self) -> int:
        return os.stat(self.path).st_size

    def documents(self, seen: Seen) -> Iterator[tuple[Record, bytes]]:
        with FILES.open(self.path) as file, self._errors():
            unpacked = io.BufferedReader(_Unpacked(self._pieces(file, seen)), _READ)
            found = ((number, number - 1, line) for number, line in self._few(lines(unpacked), file))
            empty = True
            read = functools.partial(text_of, field=self.field)
            documents = json_documents(found, read, lambda _: None, f"{self.name} line")
            for one in bounded(self.name, os.fstat(file.fileno()).st_size, documents):
                empty = False
                yield one
        if empty:
            raise DataError(f"{self.name} is empty: a .jsonl file has at least one line.")

    def _few(self, found: Lines, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
        """Lines with their numbers; DataError where they are many more than bytes have been read of the file."""
        for number, _, line in found:
            if number > MOST_LINES and number > MOST_LINES + (packed := file.tell()):
                what = f"its first {packed:,} bytes unpack to {number:,} lines and more"
                raise DataError(f"{self.name}: {what}; allowed: {MOST_LINES:,}, and one a byte.")
            yield number, line

    def _pieces(self, file: BinaryIO, seen: Seen) -> Iterator[bytes]:
        """What the file unpacks to; DataError where that is very many times as much."""
        packed = unpacked = pieces = 0

        def blocks(size: int) -> Iterator[bytes]:
            nonlocal packed
            while block := file.read(size):
                packed += len(block)
                seen(len(block))
                yield block

        unpack = _gzip if str(self.path).endswith(".gz") else _zstd
        for piece in unpack(blocks):
            unpacked, pieces = unpacked + len(piece), pieces + 1
            seen(0)  # of one block a minute's worth of lines may come
            if unpacked > max(MOST_UNPACKED, MOST_TIMES * packed):
                what = f"its first {packed:,} bytes unpack to more than {unpacked:,}"
                raise DataError(f"{self.name}: {what}; allowed: at most {MOST_TIMES} times as many.")
            if pieces > _MOST_SMALL + unpacked // _SMALL:
                what = f"its first {packed:,} bytes unpack to {pieces:,} pieces of {unpacked:,} bytes together"
                raise DataError(f"{self.name}: {what}; allowed: at least {_SMALL} bytes each.")
            yield piece

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (zlib.error, EOFError, _zstd_error()) as error:
            raise DataError(f"{self.name} is damaged: {' '.join(str(error).split())}.") from error


class _Unpacked(io.RawIOBase):
    """A file to read of pieces that are made one after the other."""

    def __init__(self, pieces: Iterator[bytes]):
        self._pieces, self._left = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self._left:
            if (piece := next(self._pieces, None)) is None:
                return 0
            self._left = memoryview(piece)
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


Blocks = Callable[[int], Iterator[bytes]]


def _gzip(blocks: Blocks) -> Iterator[bytes]:
    """The members of a .gz file, one after the other; the library compares their checksums.

    Behind a member zeros may stand, with which tapes are filled up: gzip takes them, too.
    """
    member, began = None, False
    for block in blocks(_READ):
        block = block.lstrip(b"\0") if began and member is None else block
        while block:
            member, began = zlib.decompressobj(31) if member is None else member, True
            yield member.decompress(block, _PIECE)
            block = member.unconsumed_tail
            if member.eof:
                block, member = member.unused_data.lstrip(b"\0"), None
    if member is not None:
        raise EOFError("it ends inside a compressed stream")


def _zstd(blocks: Blocks) -> Iterator[bytes]:
    """The frames of a .zst file, one after the other."""
    frames = _library().ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    frame = None
    for block in blocks(_ZSTD_READ):
        while block:
            frame = frames.decompressobj() if frame is None else frame
            yield frame.decompress(block)
            block = b""
            if frame.eof:
                block, frame = frame.unused_data, None
    if frame is not None:
        raise EOFError("it ends inside a compressed stream")


def _library():
    try:
        import zstandard
    except ImportError as error:
        raise ValueError(
            "a .zst file needs the `zstd` extra: pip install 'mm01_jax[zstd]'. A .gz file needs nothing."
        ) from error
    return zstandard


def _zstd_error() -> type[Exception]:
    try:
        return _library().ZstdError
    except ValueError:
        return EOFError
