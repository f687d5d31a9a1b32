"""Boxes of one stored array, written and read through tensorstore: zarr version 3, no compression, CRC-32C per block.

The CRC makes a damaged block an error that names its file; that the right data came back is for `digest` to say.
"""

import collections
import functools
import math
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorstore as ts

from mm01_jax.checkpoint import disk_grid
from mm01_jax.checkpoint.errors import FILES, CheckpointError
from mm01_jax.checkpoint.manifest import Leaf
from mm01_jax.links import Links

_IN_FLIGHT_BYTES = 2 * disk_grid.FILE_BYTES


class StoredArray:
    """One leaf on disk. `bounds` are one slice per axis with explicit start and stop."""

    def __init__(self, root: pathlib.Path, path: str, leaf: Leaf, *, create: bool = False):
        self.path, self.leaf, self.root, self._links = path, leaf, root, Links(root)
        mode = {"create": True, "open": True} if create else {"open": True, "assume_metadata": True}
        directory = root / disk_grid.leaf_directory(path)
        # The manifest, which has a checksum, is the metadata: a damaged zarr.json cannot change what is read.
        self._store = _written(directory, ts.open(_spec(directory, leaf), **mode))

    def write(self, bounds: tuple[slice, ...], data: np.ndarray, queue: "Queue") -> None:
        """Queues the writing of a box of whole files; `data` must not change until the queue has finished."""
        for box in disk_grid.boxes(bounds, self.leaf.file):
            part = data[_inside(box, bounds)]
            queue.room(part.nbytes)
            # Without a promise that `part` stays, tensorstore would copy it first.
            future = self._store[box].write(part, can_reference_source_data_indefinitely=True)
            [name] = disk_grid.file_names(self.path, box, self.leaf.file)
            queue.add(future, part.nbytes, functools.partial(_written, self.root / name))

    def read(self, bounds: tuple[slice, ...]) -> np.ndarray:
        """The box, of the leaf's dtype; beside it at most about 256 MiB are held.

        Raises:
          CheckpointError: a block is missing or does not match its CRC; the message names file and tensor.
        """
        self._check_files(bounds)
        out = np.empty([s.stop - s.start for s in bounds], np.dtype(self.leaf.dtype))
        # tensorstore decodes into `out` itself, which spares a copy.
        target = ts.array(out).translate_to[tuple(s.start for s in bounds)]
        queue = Queue()
        for box in disk_grid.boxes(bounds, self.leaf.file):
            nbytes = math.prod(s.stop - s.start for s in box) * out.itemsize
            queue.room(nbytes)
            queue.add(target[box].write(self._store[box]), nbytes, functools.partial(self._check, box))
        queue.finish()
        return out

    def _check_files(self, bounds: tuple[slice, ...]) -> None:
        """Refuses what tensorstore would wait for (a FIFO), follow out of the checkpoint, or read without end.

        A file has its blocks, a CRC of each, and an index of where they are with a CRC of its own. In a shorter one
        several would be one: small on the disk, as large as any when they are read.
        """
        for name in disk_grid.file_names(self.path, bounds, self.leaf.file):
            wanted, file = self._size(name), f"{self.root}/{name}"
            try:
                size = FILES.check(file, root=self._links, most=wanted)
            except CheckpointError as error:
                raise CheckpointError(f"{error} (tensor {self.path})") from None
            if size != wanted:
                what = f"has {size:,} bytes; allowed: {wanted:,}, those of its blocks"
                raise CheckpointError(f"{file}: {what} (tensor {self.path})")

    def _size(self, name: str) -> int:
        """Bytes of a file, of whose blocks those within the array are stored, and all stand in the index."""
        leaf, place = self.leaf, map(int, name.rpartition("/c")[2].split("/")[1:])
        dims = list(zip(place, leaf.shape, leaf.file, leaf.block, strict=True))
        stored = math.prod(-(-min(file, size - at * file) // block) for at, size, file, block in dims)
        each = math.prod(leaf.block) * np.dtype(leaf.dtype).itemsize + 4
        return stored * each + 16 * math.prod(file // block for _, _, file, block in dims) + 4

    def _check(self, box, future):
        try:
            future.result()
        except (ValueError, OSError) as error:
            [name] = disk_grid.file_names(self.path, box, self.leaf.file)
            raise CheckpointError(f"{self.root / name}: tensor {self.path}: {error}") from error


def _written(path: pathlib.Path, future: ts.Future) -> Any:
    """What a future holds; of a full or broken disk an OSError, for which tensorstore has errors of several types."""
    try:
        return future.result()
    except (ValueError, OSError) as error:
        if (code := re.search(r"os_error_code='(\d+)'", str(error))) is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def _inside(box, bounds) -> tuple[slice, ...]:
    return tuple(slice(s.start - b.start, s.stop - b.start) for s, b in zip(box, bounds, strict=True))


class Queue:
    """Reads or writes under way, bounded in bytes; what one of them met is raised by a later call."""

    def __init__(self):
        self._waiting = collections.deque()
        self._bytes = 0

    def room(self, nbytes: int) -> None:
        """Waits until `nbytes` more may start."""
        while self._waiting and self._bytes + nbytes > _IN_FLIGHT_BYTES:
            self._finish_oldest()

    def add(self, future, nbytes: int, receive: Callable) -> None:
        """Takes over an operation that has started; `receive` gets it when it is done."""
        self._waiting.append((future, nbytes, receive))
        self._bytes += nbytes

    def finish(self) -> None:
        """Waits for all."""
        while self._waiting:
            self._finish_oldest()

    def _finish_oldest(self):
        future, nbytes, receive = self._waiting.popleft()
        self._bytes -= nbytes
        receive(future)


def _spec(directory: pathlib.Path, leaf: Leaf) -> dict:
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    blocks = {"chunk_shape": list(leaf.block), "codecs": codecs, "index_codecs": codecs}
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{directory.resolve()}/"},
        "metadata": {
            "shape": list(leaf.shape),
            "data_type": leaf.dtype,
            "fill_value": False if leaf.dtype == "bool" else 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(leaf.file)}},
            "chunk_key_encoding": {"name": "default"},
            "codecs": [{"name": "sharding_indexed", "configuration": blocks}],
        },
        # Zeros are stored like any other value, so that a missing file is an error and never a block of zeros.
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": False,
    }
