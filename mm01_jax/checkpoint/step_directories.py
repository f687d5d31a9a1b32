"""The directory of a step, as Orbax makes it: behind the training, whole or not at all."""

import pathlib

from orbax.checkpoint import v1 as ocp

from mm01_jax.checkpoint.reader import STATE
from mm01_jax.checkpoint.snapshot import Snapshot


def begin(directory: pathlib.Path, snapshot: Snapshot):
    """Begins to save a step; what is returned has `result`, which waits."""
    with _orbax():
        return ocp.save_checkpointables_async(directory, {STATE: snapshot})


class _SnapshotHandler:
    """Orbax's view of a Snapshot: write it into the directory that Orbax is making."""

    async def save(self, directory, checkpointable: Snapshot):
        return self._write(directory, checkpointable)

    async def _write(self, directory, snapshot: Snapshot):
        snapshot.write(pathlib.Path(await directory.await_creation()))

    async def load(self, directory, abstract_checkpointable=None):
        raise NotImplementedError("mm01_jax.checkpoint.open_checkpoint reads this directory")

    async def metadata(self, directory):
        return None

    def is_handleable(self, checkpointable) -> bool:
        return isinstance(checkpointable, Snapshot)

    def is_abstract_handleable(self, abstract_checkpointable) -> bool:
        return False


def _orbax() -> ocp.Context:
    context = ocp.Context()
    registry = ocp.handlers.local_registry(include_global_registry=False)
    registry.add(_SnapshotHandler, checkpointable_name=STATE)
    context.checkpointables.registry = registry
    return context
