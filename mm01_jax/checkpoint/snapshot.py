"""A copy in host memory of a state that lives on a mesh, and how it reaches the disk.

Taking it digests the live arrays on their devices and copies each process's shards once (replica 0 only), after which
the training step may donate the arrays. Writing it needs nothing of the devices and runs in the background.
"""

import hashlib
import json
import pathlib

import jax
import numpy as np

from mm01_jax import files
from mm01_jax.checkpoint import digest, disk_grid, manifest, processes
from mm01_jax.checkpoint.arrays import Queue, StoredArray


class Snapshot:
    """The local shards of a state with the manifest of the whole."""

    def __init__(self, step: int, state, meta: dict):
        arrays = dict(zip(disk_grid.leaf_paths(state), jax.tree.leaves(state), strict=True))
        stacks = disk_grid.leaf_stacks(state)
        leaves = {path: _leaf(path, *leaf) for path, *leaf in zip(arrays, arrays.values(), stacks, strict=True)}
        for array in arrays.values():
            array.copy_to_host_async()
        lanes = [digest.array_digest(array, leaves[path].stack) for path, array in arrays.items()]
        lanes = dict(zip(arrays, processes.add(lanes), strict=True))
        self._shards = {path: _local_shards(array) for path, array in arrays.items()}
        self._config = json.dumps(meta["config"], indent=1).encode()
        self.manifest = manifest.Manifest(
            leaves={path: leaf.with_lanes(lanes[path]) for path, leaf in leaves.items()},
            files={manifest.CONFIG: hashlib.sha256(self._config).hexdigest()},
            step=step,
            meta={key: value for key, value in meta.items() if key != "config"},
            versions=manifest.versions(),
        )

    def write(self, root: pathlib.Path) -> None:
        """Writes this process's shards, and on the first process the small files; the manifest comes last.

        The snapshot is empty afterwards: each leaf's copy is freed as soon as it is on disk.
        """
        queue = Queue()
        for path, leaf in self.manifest.leaves.items():
            array = StoredArray(root, path, leaf, create=True)
            for bounds, data in self._shards.pop(path):
                array.write(bounds, data, queue)
        queue.finish()
        if jax.process_index() == 0:
            files.write(root / manifest.CONFIG, self._config)
            files.write(root / manifest.NAME, self.manifest.to_bytes())


def _leaf(path: str, array: jax.Array, stack: int) -> manifest.Leaf:
    try:
        shard = array.sharding.shard_shape(array.shape)
        file, block = disk_grid.file_grid(array.shape, shard, stack, array.dtype.itemsize)
        return manifest.Leaf(shape=array.shape, dtype=array.dtype.name, stack=stack, file=file, block=block)
    except ValueError as error:
        raise ValueError(f"leaf {path}: {error}") from error


def _local_shards(array: jax.Array) -> list[tuple[tuple[slice, ...], np.ndarray]]:
    shards = []
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            bounds = tuple(slice(*s.indices(n)[:2]) for s, n in zip(shard.index, array.shape, strict=True))
            # On a CPU device asarray is a view of the buffer, which the next step's donation overwrites.
            copy = shard.device.platform == "cpu"
            shards.append((bounds, np.array(shard.data, copy=copy or None)))
    return shards
