"""One safetensors file, written tensor by tensor from several threads: in memory is only what is being written.

    8 bytes: length n of the header, little-endian; n bytes of JSON: name -> dtype, shape, [start, stop]; the tensors

The library's own writer takes all tensors at once and copies each of them: 5 GB for a shard of 2.5 GB, and the disk
idle while they are made. Files are read through the library, by our tests and by everybody else.
"""

import json
import os
import pathlib
import struct
from collections.abc import Iterable

import numpy as np

from mm01_jax.convert.torch import header

_DTYPES = {numpy: name for name, numpy in header.DTYPES.items()}
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_SYNC_BYTES = 16 * 2**20  # from this size on a tensor goes to the disk while other threads make the next


class ShardFile:
    """A file for `tensors` (name, shape, bytes) of one dtype, in this order; `write` may come from any thread."""

    def __init__(self, path: pathlib.Path, tensors: Iterable[tuple[str, tuple[int, ...], int]], dtype: str):
        entries, at = {"__metadata__": {"format": "pt"}}, 0
        for name, shape, nbytes in tensors:
            entries[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [at, at + nbytes]}
            at += nbytes
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)  # the data aligned, as the library does
        self._starts = {name: 8 + len(text) + e["data_offsets"][0] for name, e in entries.items() if "dtype" in e}
        self._fd = os.open(path, _NEW, 0o666)
        self._pwrite(struct.pack("<Q", len(text)) + text, 0)

    def __enter__(self) -> "ShardFile":
        return self

    def __exit__(self, *_) -> None:
        os.close(self._fd)

    @staticmethod
    def header_bytes(name: str) -> int:
        """At most so much of the header is one tensor's: its name, dtype, shape of up to 4 dims and offsets."""
        return len(json.dumps(name)) + 180

    def write(self, name: str, array: np.ndarray) -> None:
        """Writes one tensor to its place."""
        self._pwrite(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, self._starts[name])
        if array.nbytes >= _SYNC_BYTES:
            os.fdatasync(self._fd)

    def sync(self) -> None:
        """Makes all of it durable."""
        os.fsync(self._fd)

    def _pwrite(self, raw, at: int) -> None:
        left = memoryview(raw)
        while left:
            done = os.pwrite(self._fd, left, at)
            left, at = left[done:], at + done
