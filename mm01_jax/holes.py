"""Files that are mostly holes: small on the disk, zeros without end to who reads them. It imports none of ours.

For files that hold no zeros by the megabyte: data, tokens and their index. Weights and moments may be
zeros, which some file systems (ZFS) keep as holes; they are as large as their config says, and read with progress.
"""

import errno
import os
from typing import BinaryIO

LEAST = 64 * 2**20  # bytes of holes that are let be, whatever the size


def refuse(file: BinaryIO, least: int | None = None) -> None:
    """ValueError where more than half of an open file, and more than `least` (`LEAST`) bytes, is holes; none is read.

    Holes are what the file system says that they are: blocks that a compressing one spares are none.
    """
    fd, status = file.fileno(), os.fstat(file.fileno())
    size = status.st_size
    most = max(LEAST if least is None else least, size // 2)
    if size - 512 * status.st_blocks <= most:
        return
    before, holes, at = os.lseek(fd, 0, os.SEEK_CUR), 0, 0
    try:
        while at - holes < size - most:  # else the rest, whatever it is, has no more holes than `most`
            data = _seek(fd, at, os.SEEK_DATA, size)
            holes += data - at
            if holes > most:
                what = f"is mostly holes: {holes:,} bytes and more of its {size:,} are not on the disk"
                raise ValueError(f"{what}; allowed: at most {most:,}")
            at = _seek(fd, data, os.SEEK_HOLE, size)
    finally:
        os.lseek(fd, before, os.SEEK_SET)


def _seek(fd: int, at: int, whence: int, size: int) -> int:
    """Where the next data or the next hole begins; of a file system that cannot tell, all is data."""
    try:
        return os.lseek(fd, at, whence)
    except OSError as error:
        return at if whence == os.SEEK_DATA and error.errno != errno.ENXIO else size
