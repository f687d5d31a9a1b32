"""Boxes of one stored array, written and read through tensorstore: zarr version 3, no compression, CRC-32C per block.

The CRC makes a damaged block an error that names its file; that the right data came back is for `digest` to say.
"""

import collections
import pathlib

import numpy as np
import tensorstore as ts

from mm01_jax.checkpoint import layout
from mm01_jax.checkpoint.errors import CheckpointError
from mm01_jax.checkpoint.manifest import Leaf

_IN_FLIGHT_BYTES = 2 * layout.FILE_BYTES


class StoredArray:
    """One leaf on disk. `bounds` are one slice per axis with explicit start and stop."""

    def __init__(self, root: pathlib.Path, path: str, leaf: Leaf, *, create: bool = False):
        self.path, self.leaf, self.root = path, leaf, root
        mode = {"create": True, "open": True} if create else {"open": True, "assume_metadata": True}
        # The manifest, which has a checksum, is the metadata: a damaged zarr.json cannot change what is read.
        self._store = ts.open(_spec(root / layout.leaf_directory(path), leaf), **mode).result()

    def write(self, bounds: tuple[slice, ...], data: np.ndarray) -> "ts.Future":
        """Starts writing one box of whole files; `data` must not change until the result is there."""
        return self._store[bounds].write(data, can_reference_source_data_indefinitely=True)

    def read(self, bounds: tuple[slice, ...]) -> np.ndarray:
        """The box, of the leaf's dtype.

        Raises:
          CheckpointError: a block is missing or does not match its CRC; the message names file and tensor.
        """
        try:
            return np.asarray(self._store[bounds].read(order="C").result())
        except (ValueError, OSError) as error:
            raise CheckpointError(f"tensor {self.path}: {self._files(bounds, str(error))}") from error

    def _files(self, bounds, message: str) -> str:
        names = layout.file_names(self.path, bounds, self.leaf.file)
        hit = [name for name in names if name in message]
        return message if hit else f"{', '.join(names)} in {self.root}: {message}"


def _spec(directory: pathlib.Path, leaf: Leaf) -> dict:
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    blocks = {"chunk_shape": list(leaf.block), "codecs": codecs, "index_codecs": codecs}
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{directory}/"},
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


class Writes:
    """Writes under way, bounded: at most about 512 MiB are being encoded at once."""

    def __init__(self):
        self._futures = collections.deque()
        self._bytes = 0

    def add(self, array: StoredArray, bounds: tuple[slice, ...], data: np.ndarray) -> None:
        """Starts one file's write; raises what an earlier one met."""
        while self._futures and self._bytes + data.nbytes > _IN_FLIGHT_BYTES:
            self._finish_oldest()
        self._futures.append((array.write(bounds, data), data.nbytes))
        self._bytes += data.nbytes

    def finish(self) -> None:
        """Waits for all writes; raises what one of them met."""
        while self._futures:
            self._finish_oldest()

    def _finish_oldest(self):
        future, nbytes = self._futures.popleft()
        self._bytes -= nbytes
        future.result()
