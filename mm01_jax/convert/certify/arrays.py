"""Arrays of .npy and .npz files that anybody may have made: never pickled, and no larger than the file lets expect."""

import os
import zipfile

import numpy as np

from mm01_jax.checkpoint import FILES, CheckpointError
from mm01_jax.files import shown, why

_ALWAYS, _TIMES = 64 << 20, 32  # bytes that may be taken whatever the file, and beyond them times its size on disk


def read(path) -> np.ndarray | dict[str, np.ndarray]:
    """The array of an .npy, or those of an .npz by name.

    Raises:
      CheckpointError: not such a file, or one of holes, or one that unpacks to very much more than it has.
    """
    with FILES.open(path) as file:
        try:
            status, needed = os.fstat(file.fileno()), _needed(file)
            if needed <= max(_ALWAYS, _TIMES * min(status.st_size, 512 * status.st_blocks)):
                file.seek(0)
                loaded = np.load(file, allow_pickle=False)
                if isinstance(loaded, np.ndarray):
                    if more := status.st_size - file.tell():
                        raise ValueError(f"{more:,} bytes follow the {loaded.nbytes:,} of its array")
                    return loaded
                if twice := [name for name in loaded.files if loaded.files.count(name) > 1]:
                    raise ValueError(f"the name {twice[0]!r} occurs twice")
                return {name: loaded[name] for name in loaded.files}
        except Exception as error:  # NumPy and zipfile raise a dozen kinds, of header, end, method, password, memory
            raise CheckpointError(f"{shown(path)}: not an .npy or .npz of plain arrays: {why(error)}") from None
    what = f"takes {needed:,} bytes and has {status.st_blocks * 512:,} on the disk"
    raise CheckpointError(f"{shown(path)}: {what}; allowed: up to {_ALWAYS >> 20} MiB, or {_TIMES} times as much")


def _needed(file) -> int:
    """Bytes of the arrays, as the file says them."""
    if not zipfile.is_zipfile(file):
        return os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as members:
        return sum(member.file_size for member in members.infolist())
