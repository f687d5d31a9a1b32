"""A bound on the processor time that looking at a file may take, whatever its format lets it say.

Every reader refuses what it knows to grow without end; this is for what nobody thought of. The work of honest files is
in proportion to their bytes and records: of short lines in .zst, the slowest, a fifth of this.
"""

import time
from collections.abc import Iterator

from mm01_jax.data.text import DataError

SECONDS, A_MIB, A_RECORD = 4.0, 4.0, 1e-4  # of the processor: for any file, for a MiB on the disk, for a record


def bounded[T](name: str, nbytes: int, found: Iterator[T]) -> Iterator[T]:
    """What is found in a file of so many bytes, one after the other.

    Raises:
      DataError: finding it takes very much longer than the file is large; names the file.
    """
    most, spent, began = SECONDS + A_MIB * nbytes / 2**20, 0.0, time.thread_time()
    for one in found:
        spent += time.thread_time() - began
        most += A_RECORD
        if spent > most:
            what = f"looking at it took {spent:.1f} s of the processor so far, for {nbytes:,} bytes"
            raise DataError(
                f"{name}: {what}; allowed: {SECONDS:g} s, {A_MIB:g} a MiB and {A_RECORD * 1e3:g} ms a record."
            )
        yield one
        del one  # before the next is made
        began = time.thread_time()
