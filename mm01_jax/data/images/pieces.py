"""What a stranger's file is made of: very many pieces take minutes or much memory, and are refused before Pillow reads.

Bounded are the chunks of a PNG, the segments of a JPEG, what is read of a GIF, the values of a TIFF's tags, and what
stands beside the pixels: Pillow keeps three copies of a colour profile, and puts EXIF together in its square.
"""

import io
import struct
from collections.abc import Iterator

from mm01_jax.data.text import DataError

BEGINS = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff", "GIF": b"GIF8", "BMP": b"BM", "TIFF": b"II*\0"}
SCAN = b"\xff\xda"  # where a JPEG's pixels begin
_READS, _BYTES_A_READ = 10_000, 16  # a GIF's block of pixels has 255 bytes, and is read at twice
_VALUES, _OF_BYTES = 1 << 16, (1, 2, 7)  # of a TIFF's tag, but of types that stay bytes: a colour profile, a text
_BESIDE = 1 << 24  # bytes: a colour profile of a printer has four million, EXIF of a JPEG 65,533
_PIXELS = {b"IDAT", b"VP8 ", b"VP8L", b"ALPH", b"ANMF"}  # chunks of them, in a PNG and in a WebP
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a JPEG's kinds; of Huffman's code the first three
_BARE = {1, *range(0xD0, 0xDA)}  # markers without a size
_CRITICAL = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}


class ImageError(DataError):
    """An image that cannot be used; the message begins with its name."""


class Counted(io.BytesIO):
    """A GIF, read in no more pieces than its bytes allow: Pillow keeps each of a comment's, which may have one byte."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self._left, self._name = _READS + len(content) // _BYTES_A_READ, name

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            allowed = f"{_READS:,} reads and one for each {_BYTES_A_READ} bytes"
            raise ImageError(f"{self._name}: has very many blocks that are very small; allowed: {allowed}")
        return super().read(size)


def opened(content: bytes, name: str) -> io.BytesIO:
    """The file for Pillow.

    Raises:
      ImageError: it has more pieces than its bytes allow.
      ValueError, struct.error: of a TIFF, as `tags`.
    """
    if content.startswith((BEGINS["PNG"], BEGINS["JPEG"])) or _is_webp(content):
        _check_chunks(content, name)
    if content[:2] in (b"II", b"MM") and content[2:4] in (b"*\0", b"\0*", b"+\0", b"\0+"):
        found = tags(content)
        most = max((values for _, kind, values in found if kind not in _OF_BYTES), default=0)
        if most > _VALUES:
            raise ImageError(f"{name}: has a tag of {most:,} values; allowed are {_VALUES:,}")
        _check_beside(sum(values for _, kind, values in found if kind in _OF_BYTES), name)
    return Counted(content, name) if content.startswith(BEGINS["GIF"]) else io.BytesIO(content)


def check_png(content: bytes, name: str) -> None:
    """Whether a PNG ends as one, with no chunk on the way that it cannot be read without; Pillow passes over both.

    Raises:
      ImageError: as it says.
    """
    kinds = {kind for kind, _ in _chunks(content)}
    if strange := sorted(kind for kind in kinds - _CRITICAL if not kind[0] & 0x20):
        raise ImageError(f"{name}: has a chunk {strange[0]!r}, which is none of PNG's and must not be passed over")
    if b"IEND" not in kinds:
        raise ImageError(f"{name}: has no chunk IEND at its end; the file is truncated or damaged")


def is_huffman(content: bytes) -> bool:
    """Whether a JPEG is surely one of Huffman's code, whatever another reader takes its segments for."""
    kinds = [marker[1] for marker, _ in _segments(content)]
    frames = [kind for kind in kinds if kind in _FRAMES]
    return len(frames) == 1 and frames[0] <= 0xC2 and not _BARE.intersection(kinds)


def tags(content: bytes) -> list[tuple[int, int, int]]:
    """(number, type, count of values) of each tag of a TIFF's first picture, where Pillow looks for them.

    Raises:
      struct.error: the file ends before.
      ValueError: they are too many, or in a form that Pillow and the library which unpacks pixels read differently.
    """
    if content.startswith(b"MM\0+"):
        raise ValueError("it is a BigTIFF of highest bytes first")
    order, big = "<" if content.startswith(b"II") else ">", content[2] == 43
    (at,) = struct.unpack_from(order + "IQ"[big], content, 8 if big else 4)
    (count,) = struct.unpack_from(order + "HQ"[big], content, at)
    if count > _VALUES:
        raise ValueError(f"it has {count:,} tags; allowed are {_VALUES:,}")
    at, entry = at + (8 if big else 2), struct.Struct(order + ("HHQ8x" if big else "HHI4x"))
    whole = min(count, (len(content) - at) // entry.size)
    return list(entry.iter_unpack(memoryview(content)[at : at + whole * entry.size]))


def _is_webp(content: bytes) -> bool:
    return content.startswith(b"RIFF") and content[8:12] == b"WEBP"


def _chunks(content: bytes) -> Iterator[tuple[bytes, int]]:
    """(kind, bytes) of each chunk of a PNG, to its end, or of a WebP."""
    webp = _is_webp(content)
    at, order = (12, "little") if webp else (8, "big")
    while at + (8 if webp else 12) <= len(content):
        first, second = content[at : at + 4], content[at + 4 : at + 8]
        kind, size = (first, int.from_bytes(second, order)) if webp else (second, int.from_bytes(first, order))
        yield kind, size
        if kind == b"IEND":
            break
        at += 8 + size + size % 2 if webp else 12 + size


def _segments(content: bytes) -> Iterator[tuple[bytes, int]]:
    """(marker, bytes) of each segment of a JPEG, before its pixels; bytes that fill up may stand before one."""
    at = 2
    while at + 8 <= len(content) and content[at] == 0xFF and content[at : at + 2] != SCAN:
        filled = content[at + 1] == 0xFF
        size = 0 if filled else int.from_bytes(content[at + 2 : at + 4])
        yield content[at : at + 2], size
        at += 1 if filled else 2 + size


def _check_chunks(content: bytes, name: str) -> None:
    jpeg, most, beside = content.startswith(BEGINS["JPEG"]), 1000 + len(content) // 1024, 0
    for count, (kind, size) in enumerate(_segments(content) if jpeg else _chunks(content), 1):
        if count > most:
            what = "segments" if jpeg else "chunks"
            raise ImageError(f"{name}: has more than {most:,} {what}; allowed: one for each KiB")
        beside += 0 if kind in _PIXELS else size
    _check_beside(beside, name)


def _check_beside(nbytes: int, name: str) -> None:
    if nbytes > _BESIDE:
        what = f"has {nbytes:,} bytes beside its pixels (a colour profile, EXIF, other data)"
        raise ImageError(f"{name}: {what}; allowed are {_BESIDE:,}: save it without")
