"""Reads a checkpoint, chunk by chunk or onto a mesh, and believes nothing that its digests do not confirm."""

import contextlib
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mm01_jax import guard
from mm01_jax.checkpoint import digest, disk_grid, manifest, processes
from mm01_jax.checkpoint.arrays import StoredArray
from mm01_jax.checkpoint.errors import FILES, CheckpointError, NoValidCheckpoint, OtherVersion, Unfit
from mm01_jax.checkpoint.placement import place
from mm01_jax.config import Config, ConfigError, saved
from mm01_jax.messages import listing
from mm01_jax.values import nearest_words

CHECKPOINTS = "checkpoints"  # the steps of a run, inside its work directory
STATE = "state"  # the checkpoint proper, inside a step or a conversion
_NUMBER = re.compile("[0-9]{1,18}")  # of a step: `isdecimal` takes the digits of every script
_MOST_TRIED = 12  # steps of a run: where so many are damaged, something else is wrong


class Checkpoint:
    """One verified manifest and the arrays it describes."""

    def __init__(
        self,
        directory: pathlib.Path,
        prefix: str = "",
        *,
        root: pathlib.Path | None = None,
        most_leaves: int = disk_grid.MOST_LEAVES,
    ):
        """root: the run that owns the directory; None where a person named it."""
        self.directory = pathlib.Path(directory) / STATE
        FILES.inside(self.directory, root or directory)
        times = most_leaves / disk_grid.MOST_LEAVES
        self.manifest = guard.reading(root or directory, lambda: manifest.read(self.directory, most_leaves), times)
        self._check_step()
        self.prefix = prefix
        self.passed_over: tuple[str, ...] = ()  # what is wrong with each newer step of its run

    def _check_step(self) -> None:
        """A step of a run is known by the name of its directory, and its manifest says it again."""
        place, said = self.directory.absolute().parent, self.manifest.step
        if place.parent.name == CHECKPOINTS and _NUMBER.fullmatch(place.name) and said not in (None, int(place.name)):
            what = f"is of step {said}, and lies where step {int(place.name)} should"
            raise CheckpointError(f"{self.directory / manifest.NAME}: {what}")

    @property
    def notice(self) -> str:
        """What a person should hear before it is used; nothing where it is the one that was named."""
        if not self.passed_over:
            return ""
        return f"{self.directory.parent} is read, an older step of its run: {listing(self.passed_over)}"

    @property
    def leaves(self) -> dict[str, manifest.Leaf]:
        """Leaves under the prefix, by their path without it: shape, dtype, stack and chunk digests of each."""
        n = len(self.prefix)
        return {path[n:]: leaf for path, leaf in self.manifest.leaves.items() if path.startswith(self.prefix)}

    @property
    def config_json(self) -> str:
        """The run's configuration, as saved: JSON text, never code."""
        return FILES.text(self.directory / manifest.CONFIG, root=self.directory, most=saved.MOST_BYTES)

    @property
    def config_object(self) -> dict:
        """The run's configuration as parsed JSON, its fields not yet checked."""
        return FILES.json(self.directory / manifest.CONFIG, root=self.directory, most=saved.MOST_BYTES)

    @property
    def config(self) -> Config:
        """The run's configuration, checked.

        Raises:
          CheckpointError: it is none, or one of another version.
        """
        try:
            return guard.reading(self.directory, lambda: saved.from_json(self.config_json))
        except ConfigError as error:
            raise CheckpointError(f"{self.directory / manifest.CONFIG}: {error}") from None

    def read(self, path: str, index: tuple[int, ...] = ()) -> np.ndarray:
        """One logical chunk, of shape leaf.shape[leaf.stack:].

        Raises:
          CheckpointError: the chunk is missing or not what was saved; the message names file and tensor.
        """
        path = self.prefix + path
        leaf = self.manifest.leaves[path]
        chunk = StoredArray(self.directory, path, leaf).read(leaf.bounds(index)).reshape(leaf.shape[leaf.stack :])
        if (digest.chunk_digest(chunk) != leaf.lanes[tuple(index)]).any():
            raise CheckpointError(self._mismatch(path, [index]))
        return chunk

    def restore(
        self,
        abstract,
        *,
        cast: bool = False,
        count: Callable[[int], None] = lambda nbytes: None,
        each: Callable[[str, jax.Array], Any] = lambda path, array: array,
    ):
        """A tree like `abstract` (ShapeDtypeStructs with shardings) with the stored arrays, verified on their devices.

        Args:
          cast: floats are verified as stored, then converted to the dtypes of `abstract`, one leaf at a time.
          count: told the bytes of every part that was read.
          each: what becomes of a leaf once its digest is taken; its result stands in the leaf's place.

        Raises:
          Unfit: the checkpoint holds other leaves, shapes or dtypes than `abstract` asks for; all are named.
          CheckpointError: an array is damaged; the message names file and tensor.
        """
        abstract_leaves = dict(zip(disk_grid.leaf_paths(abstract), jax.tree.leaves(abstract), strict=True))
        self._check_tree(abstract_leaves, cast)
        leaves, arrays, lanes, failure = self.leaves, {}, {}, None
        try:
            for path, leaf in abstract_leaves.items():
                arrays[path] = self._load(self.prefix + path, leaf, count)
                lanes[path] = digest.array_digest(arrays[path], leaves[path].stack)
                arrays[path] = each(path, arrays[path].astype(leaf.dtype))
        except CheckpointError as error:
            failure = error
        processes.agree(failure, CheckpointError)
        for path, total in zip(lanes, processes.add(list(lanes.values())), strict=True):
            bad = np.argwhere((total != leaves[path].lanes).any(axis=-1))
            if len(bad):
                raise CheckpointError(self._mismatch(self.prefix + path, [tuple(map(int, i)) for i in bad]))
        return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[path] for path in abstract_leaves])

    def _check_tree(self, abstract_leaves, cast):
        stored, problems = self.leaves, []
        problems += [f"missing {path}" for path in abstract_leaves if path not in stored]
        problems += [f"surplus {path}" for path in stored if path not in abstract_leaves]
        for path in abstract_leaves.keys() & stored.keys():
            want, have = abstract_leaves[path], stored[path]
            casts = cast and all(jnp.issubdtype(dtype, jnp.floating) for dtype in (want.dtype, have.dtype))
            if want.shape != have.shape or (want.dtype.name != have.dtype and not casts):
                problems.append(f"{path}: stored {have.dtype}{list(have.shape)}, wanted {want.dtype}{list(want.shape)}")
        if problems:
            raise Unfit(f"{self.directory} does not fit the model: {listing(sorted(problems))}")

    def _load(self, path: str, want: jax.ShapeDtypeStruct, count: Callable[[int], None]) -> jax.Array:
        stored = StoredArray(self.directory, path, self.manifest.leaves[path])

        def read(box):
            part = stored.read(box)
            count(part.nbytes)
            return part

        return place(want, read)

    def _mismatch(self, path: str, chunks: list[tuple[int, ...]]) -> str:
        leaf = self.manifest.leaves[path]
        files = sorted({name for i in chunks for name in disk_grid.file_names(path, leaf.bounds(i), leaf.file)})
        what = f"tensor {path}: {len(chunks)} chunks, the first {chunks[0]}, differ from their digests"
        return f"{self.directory}: {what}; files {', '.join(files[:8])}"


def open_checkpoint(
    directory, prefix: str = disk_grid.WEIGHTS, *, most_leaves: int = disk_grid.MOST_LEAVES
) -> Checkpoint:
    """The checkpoint in `directory`: a conversion, one step of a run, or a run's newest step with a sound manifest.

    By default only the weights are seen, under the paths of the model itself.

    Raises:
      OtherVersion: a version wrote it whose checkpoints are not read any more.
      CheckpointError: there is none, or its manifest is damaged.
    """
    directory = pathlib.Path(directory)
    if (directory / STATE).is_dir():
        if os.path.lexists(directory / CHECKPOINTS):
            what = f"it has both {STATE}, of a step or a conversion, and {CHECKPOINTS}, of a run"
            raise CheckpointError(f"{directory}: {what}: move one of them elsewhere")
        return Checkpoint(directory, prefix, most_leaves=most_leaves)
    for name in (CHECKPOINTS, STATE):
        if os.path.lexists(directory / name):
            FILES.inside(directory / name, directory)
    problems = []
    for _, step in newest_steps(directory / CHECKPOINTS):
        try:
            checkpoint = Checkpoint(step, prefix, root=directory, most_leaves=most_leaves)
            checkpoint.passed_over = tuple(problems)
            return checkpoint
        except OtherVersion:
            raise
        except CheckpointError as error:
            problems.append(str(error))
    raise CheckpointError(listing([f"{directory}: no checkpoint here{nearest_words(directory)}", *problems]))


def load_weights(directory, abstract_model):
    """The weights in `directory` (see `open_checkpoint`), verified, on the mesh and in the dtypes of `abstract_model`.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
      Unfit: it holds another model; every missing, surplus or mis-shaped leaf is named.
    """
    return open_checkpoint(directory).restore(abstract_model, cast=True)


def step_name(step: int) -> str:
    """The directory of a step, and no other: `6` beside `00000006` is none."""
    return f"{step:08d}"


def list_steps(directory: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
    """What has the name of a step, in rising order; whether it is one, and sound, is another question."""
    if not directory.is_dir():
        return []
    numbered = ((int(p.name), p) for p in directory.iterdir() if _NUMBER.fullmatch(p.name))
    return sorted((step, p) for step, p in numbered if p.name == step_name(step))


def newest_steps(directory: pathlib.Path) -> Iterator[tuple[int, pathlib.Path]]:
    """The steps to try, the newest first.

    Raises:
      NoValidCheckpoint: more than `_MOST_TRIED` are asked for, or some with manifests of more bytes than one may have.
    """
    steps, read = list_steps(directory)[::-1], 0
    for tried, (step, path) in enumerate(steps):
        read += _manifest_bytes(path)
        if tried and (tried == _MOST_TRIED or read > manifest.MOST_BYTES):
            left, last = len(steps) - tried, steps[tried - 1][0]
            what = f"none of the newest {tried} steps verifies; the {left:,} before step {last}"
            raise NoValidCheckpoint(f"{directory}: {what} are tried when those are moved elsewhere")
        yield step, path


def _manifest_bytes(step: pathlib.Path) -> int:
    """What is read of it at most; one that is too large is refused unread."""
    size = 0
    with contextlib.suppress(OSError):  # who opens it says what is wrong
        size = os.stat(step / STATE / manifest.NAME).st_size
    return size if size <= manifest.MOST_BYTES else 0
