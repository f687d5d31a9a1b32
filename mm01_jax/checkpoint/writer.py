"""Writes a checkpoint of weights one logical chunk at a time: no mesh, bounded memory, resumable after an interruption.

Everything grows in `<target>.partial`, which gets its final name only when it is complete. A journal beside the arrays
has one line per chunk on disk, appended after the chunk is durable; a chunk counts as done when its journal line is
whole and the bytes on disk give the digest in it.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import threading

import numpy as np

from mm01_jax import files, taken
from mm01_jax.checkpoint import digest, disk_grid, manifest
from mm01_jax.checkpoint.arrays import Queue, StoredArray
from mm01_jax.checkpoint.errors import CheckpointError
from mm01_jax.checkpoint.lock import RunLock
from mm01_jax.checkpoint.reader import STATE

_PLAN = "plan.json"
_JOURNAL = "journal.jsonl"
TYPED = files.Door(ValueError)  # where a conversion goes is what a person typed


class ArrayWriter:
    """Writes the leaves `{path: (shape, dtype name, number of stack axes)}` of a model into `target`.

    `write` may be called from several threads, for different chunks.

    Raises:
      ValueError: `target` exists, or an interrupted conversion of other leaves lies in its way.
      Locked: another process is writing it.
    """

    def __init__(self, target, leaves: dict[str, tuple[tuple[int, ...], str, int]], prefix: str = disk_grid.WEIGHTS):
        self._target = pathlib.Path(target).absolute()
        self._partial = self._target.with_name(self._target.name + ".partial")
        check_target(self._target)
        self._prefix = prefix
        self._leaves = {prefix + path: _leaf(path, *spec) for path, spec in leaves.items()}
        self._lanes = {
            path: np.zeros(x.shape[: x.stack] + (digest.LANES,), np.uint32) for path, x in self._leaves.items()
        }
        self._state = claim_partial(self._partial, _PLAN) / STATE
        TYPED.folder(self._state)
        self._lock = RunLock(self._partial)
        try:
            files.remove_unfinished(self._partial)
            files.remove_unfinished(self._state)
            self._check_plan()
            self._entries = self._read_journal()
            self._verified = set()  # chunks written or read back by this process
            self._journal = os.fdopen(files.update(self._partial / _JOURNAL, os.O_APPEND), "a")
            self._journal_lock = threading.Lock()
            self._arrays = {path: StoredArray(self._state, path, x, create=True) for path, x in self._leaves.items()}
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Stops; what is written stays for the next `ArrayWriter` on this target."""
        with contextlib.suppress(OSError):  # what a full disk did not take was said when it was written
            self._journal.close()
        self._lock.close()

    def write(
        self, path: str, index: tuple[int, ...], chunk: np.ndarray, sources: dict[str, str] | None = None
    ) -> None:
        """Writes one chunk, durably.

        Args:
          chunk: shape[stack:] of the leaf, in its dtype.
          sources: SHA-256 of each source tensor that went into the chunk, kept in the manifest.
        """
        path, index = self._prefix + path, tuple(int(i) for i in index)
        leaf = self._leaves[path]
        if chunk.shape != leaf.shape[leaf.stack :] or chunk.dtype.name != leaf.dtype:
            want = f"{leaf.dtype}{list(leaf.shape[leaf.stack :])}"
            raise ValueError(f"chunk {index} of {path} is {chunk.dtype}{list(chunk.shape)}, the leaf needs {want}")
        lanes = digest.chunk_digest(chunk)
        queue = Queue()
        self._arrays[path].write(leaf.bounds(index), chunk.reshape((1,) * leaf.stack + chunk.shape), queue)
        queue.finish()
        entry = {"path": path, "index": index, "lanes": lanes.tolist(), "sources": sources or {}}
        with self._journal_lock:
            self._note(json.dumps(entry) + "\n")
            self._entries[path, index] = entry
            self._verified.add((path, index))

    def _note(self, line: str) -> None:
        try:
            self._journal.write(line)
            self._journal.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._partial / _JOURNAL)) from None

    def done(self, path: str, index: tuple[int, ...]) -> bool:
        """Whether the chunk is on disk and matches the digest it was written with (read back at the first question)."""
        key = self._prefix + path, tuple(int(i) for i in index)
        if key not in self._entries or key in self._verified:
            return key in self._verified
        leaf = self._leaves[key[0]]
        try:
            chunk = self._arrays[key[0]].read(leaf.bounds(key[1]))
        except CheckpointError:
            return False
        if digest.chunk_digest(chunk.reshape(leaf.shape[leaf.stack :])).tolist() != self._entries[key]["lanes"]:
            return False
        self._verified.add(key)
        return True

    def finish(self, config_json: str, extra: dict | None = None) -> None:
        """Writes config and manifest and gives the directory its final name.

        Raises:
          ValueError: chunks are missing; says how many and names the first.
        """
        chunks = [(path, i) for path, x in self._leaves.items() for i in np.ndindex(x.shape[: x.stack])]
        missing = [key for key in chunks if key not in self._verified]
        if missing:
            raise ValueError(f"{len(missing)} of {len(chunks)} chunks are not written or verified, first {missing[0]}")
        sources = {}
        for path, index in chunks:
            self._lanes[path][index] = self._entries[path, index]["lanes"]
            sources |= self._entries[path, index]["sources"]
        config = config_json.encode()
        result = manifest.Manifest(
            leaves={path: leaf.with_lanes(self._lanes[path]) for path, leaf in self._leaves.items()},
            files={manifest.CONFIG: hashlib.sha256(config).hexdigest()},
            meta=extra or {},
            versions=manifest.versions(),
            source_sha256=sources,
        )
        files.write(self._state / manifest.CONFIG, config)
        files.write(self._state / manifest.NAME, result.to_bytes())
        self.close()
        self._partial.rename(self._target)
        files.sync_directory(self._target.parent)
        for name in (_PLAN, _JOURNAL, RunLock.NAME):
            (self._target / name).unlink()

    def _check_plan(self):
        plan = json.dumps({path: [x.shape, x.dtype, x.stack, x.file] for path, x in self._leaves.items()})
        path = self._partial / _PLAN
        if not os.path.lexists(path):
            files.write(path, plan.encode())
        if TYPED.text(path, root=self._partial) != plan:
            raise ValueError(
                f"{self._partial} holds an interrupted conversion of other leaves; remove it to start anew"
            )

    def _read_journal(self) -> dict:
        path = self._partial / _JOURNAL
        lines = TYPED.read(path, root=self._partial).split(b"\n")[:-1] if os.path.lexists(path) else []
        entries = [entry for entry in map(_entry, lines) if entry]  # the last one may be cut
        files.write(path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())
        return {(entry["path"], tuple(entry["index"])): entry for entry in entries}


def check_target(target: pathlib.Path) -> None:
    """ValueError where a conversion cannot become this directory: it is there, or inside another checkpoint."""
    if os.path.lexists(target):
        raise ValueError(f"--target={target}: exists already; remove it or choose another directory")
    if whole := taken.above(target):
        raise ValueError(f"--target={target}: {whole}; allowed: a directory outside it")


def claim_partial(partial: pathlib.Path, plan: str) -> pathlib.Path:
    """The folder that a conversion grows in, made or left by an interrupted one, which has a file `plan` in it.

    Raises:
      ValueError: something else lies there.
    """
    TYPED.folder(partial)
    found = {path.name for path in partial.iterdir()} - {STATE, RunLock.NAME}
    # What a kill left of the plan's own writing.
    found = {name for name in found if not (name.startswith(f"{plan}.") and name.endswith(".tmp"))}
    if found and plan not in found:
        what = f"holds {files.quoted(min(found))} and is no interrupted conversion"
        raise ValueError(f"{partial}: {what}; remove it or choose another target")
    return partial


def _entry(line: bytes) -> dict | None:
    """A line of the journal; None of what is none, whose chunk is written again."""
    try:
        entry = files.parse_json(line)
        kinds = {"path": str, "lanes": list, "sources": dict, "index": list}
        good = all(type(entry[key]) is kind for key, kind in kinds.items())
        return entry if good and all(type(i) is int for i in entry["index"]) else None
    except (ValueError, KeyError, TypeError):
        return None


def _leaf(path: str, shape: tuple[int, ...], dtype: str, stack: int) -> manifest.Leaf:
    if not disk_grid.is_leaf_path(path):
        raise ValueError(f"{path!r} is not the path of a leaf")
    file, block = disk_grid.file_grid(shape, (1,) * stack + tuple(shape[stack:]), stack, np.dtype(dtype).itemsize)
    return manifest.Leaf(shape=tuple(shape), dtype=np.dtype(dtype).name, stack=stack, file=file, block=block)
