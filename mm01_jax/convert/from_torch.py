"""A PyTorch checkpoint into ours, one logical chunk in memory at a time, resumable (docs/conversion.md).

Each tensor of the source becomes one chunk of one leaf (table.py). The writer keeps a journal of chunks that are on
disk; the same command again verifies those and goes on. The manifest gets the SHA-256 of every source tensor.
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable

import numpy as np

from mm01_jax.checkpoint import ArrayWriter
from mm01_jax.checkpoint.writer import check_target
from mm01_jax.config import saved
from mm01_jax.convert import companions, parallel, table
from mm01_jax.convert.progress import Plan, Progress
from mm01_jax.convert.sources import TorchSource, check_buffers, with_dtype
from mm01_jax.files import Door, write
from mm01_jax.messages import say

_ORIGIN = "source.json"  # beside an interrupted conversion: what it was reading


def from_torch(
    source,
    target,
    *,
    dtype: str | None = None,
    check_finite: bool = False,
    dry_run: bool = False,
    log: Callable[[str], None] = say,
) -> None:
    """Converts the PyTorch checkpoint in `source` into a checkpoint of ours at `target`.

    Args:
      dtype: "bfloat16" or "float32" casts every weight; None keeps the bits.
      check_finite: refuse NaN and infinity.
      dry_run: only say what would be done.

    Raises:
      CheckpointError: the source is damaged or contradicts its config.json; names file and tensor.
      ValueError: the target is there already, holds another interrupted conversion, or has no room.
    """
    torch = TorchSource(source, check_finite=check_finite, rounds=dtype is not None)
    target_dtype = dtype or torch.dtype
    if target_dtype not in ("bfloat16", "float32"):
        raise ValueError(f"dtype: the weights are {torch.dtype}; choose --dtype=bfloat16 or --dtype=float32")
    target = pathlib.Path(target).absolute()
    plan = _plan(torch, target, target_dtype)
    log(str(plan))
    check_target(target)
    companions.check(torch.directory)
    if dry_run:
        return
    plan.check_room()
    check_buffers(torch)
    leaves = {path: (leaf.shape, target_dtype, leaf.stack) for path, leaf in table.leaves(torch.tensors).items()}
    with ArrayWriter(target, leaves) as writer:
        _claim_partial(torch, target)
        progress = Progress(plan.bytes_in, "from-torch")
        convert = functools.partial(_convert, torch, writer, target_dtype, progress)
        parallel.for_each(torch.tensors, functools.partial(_nbytes, torch), convert)
        companions.copy(torch.directory, _partial(target))
        origin = {"dialect": torch.dialect.name, "dtype": torch.dtype, "config": torch.plain}
        writer.finish(saved.to_json(with_dtype(torch.config, target_dtype)), {"source": origin})
    (target / _ORIGIN).unlink()
    log(progress.finish())


def _nbytes(torch: TorchSource, tensor: table.Tensor) -> int:
    return table.num_elements(tensor) * np.dtype(torch.dtype).itemsize


def _convert(torch: TorchSource, writer: ArrayWriter, dtype: str, progress: Progress, tensor: table.Tensor) -> None:
    name = torch.dialect.torch_name(tensor)
    progress.start(name, _nbytes(torch, tensor))
    if writer.done(tensor.leaf, tensor.index):
        progress.add(_nbytes(torch, tensor))
        return
    chunk, sha256 = torch.read_with_sha256(tensor, progress.add)
    # A tensor of another dtype than most: what was converted is not its bits, so they are no digest of ours.
    sources = {name: sha256} if chunk.dtype.name == torch.dtype else {}
    writer.write(tensor.leaf, tensor.index, torch.fitted(tensor, chunk, dtype), sources)


def _plan(torch: TorchSource, target: pathlib.Path, dtype: str) -> Plan:
    elements = sum(map(table.num_elements, torch.tensors))
    notes = [f"dialect {torch.dialect.name}, {torch.dtype} -> {dtype}"]
    if torch.buffers:
        notes.append(f"{len(torch.buffers)} decay buffers are compared with their formula and dropped")
    if torch.sha256s:
        notes.append("every tensor is compared with the directory's list of SHA-256")
    partial = _partial(target)
    found = partial.rglob("*") if partial.is_dir() and not partial.is_symlink() else ()
    done = sum(path.lstat().st_size for path in found)
    return Plan(
        tensors=len(torch.tensors),
        bytes_in=elements * np.dtype(torch.dtype).itemsize,
        bytes_out=elements * np.dtype(dtype).itemsize,
        bytes_done=min(done, elements * np.dtype(dtype).itemsize),
        target=target,
        notes=tuple(notes),
    )


def _partial(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(target.name + ".partial")


def _claim_partial(torch: TorchSource, target: pathlib.Path) -> None:
    """An interrupted conversion goes on with the source it began with, known by config, names, sizes and times."""
    entries = sorted((name, torch.files.shard[name], *entry) for name, entry in torch.files.entries.items())
    shards = {shard: (torch.directory / shard).stat() for shard in sorted(set(torch.files.shard.values()))}
    times = [(shard, status.st_size, status.st_mtime_ns) for shard, status in shards.items()]
    origin = hashlib.sha256(json.dumps([torch.plain, entries, times]).encode()).hexdigest()
    path = _partial(target) / _ORIGIN
    if path.exists() and Door(ValueError).text(path, root=path.parent) != origin:
        raise ValueError(f"{path.parent} holds an interrupted conversion of another source; remove it to start anew")
    write(path, origin.encode())
