"""A checkpoint of ours into a PyTorch directory of any dialect: tensor by tensor, shard by shard, resumable.

Everything grows in `<target>.partial`. A shard is written under a temporary name (shard.py), synced, renamed, and noted
in a journal with the SHA-256 of its tensors; the same command again verifies noted shards and goes on.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable

import numpy as np
import safetensors

from mm01_jax.checkpoint import FILES, CheckpointError, RunLock
from mm01_jax.checkpoint.writer import TYPED, check_target, claim_partial
from mm01_jax.convert import axes, companions, parallel, table
from mm01_jax.convert.progress import Plan, Progress
from mm01_jax.convert.sources import CheckpointSource, write_json
from mm01_jax.convert.torch import decay, files, released
from mm01_jax.convert.torch.dialects import DIALECTS, Dialect
from mm01_jax.convert.torch.shard import ShardFile
from mm01_jax.files import parse_json, sync_directory, update, write
from mm01_jax.messages import say

SHARD_BYTES = 4_900_000_000  # below the 5 GB that hubs and their tools take for a file
_JOURNAL = "journal.jsonl"
_PLAN = "plan.json"


@dataclasses.dataclass(frozen=True)
class Item:
    """One tensor to write: a weight, or a decay buffer that is made anew."""

    name: str
    shape: tuple[int, ...]
    nbytes: int
    origin: table.Tensor | decay.Buffer


def to_torch(
    source,
    target,
    *,
    dialect: str | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    dry_run: bool = False,
    log: Callable[[str], None] = say,
) -> None:
    """Exports the checkpoint in `source` (ours) as safetensors files at `target`.

    Args:
      dialect: "original", "native", "m1" or "vl-01"; None is the one the weights came from.
      dtype: "bfloat16" or "float32" casts every weight; None keeps the bits.
      shard_bytes: a shard has at most this, or one tensor that is larger.

    Raises:
      CheckpointError: the checkpoint is damaged; names file and tensor.
      ValueError: the dialect cannot hold this model, or the target is taken or has no room.
    """
    checkpoint = CheckpointSource(source)
    chosen = DIALECTS[dialect] if dialect else checkpoint.dialect
    target_dtype = dtype or checkpoint.dtype
    settings = released.config_json(checkpoint.config, chosen, target_dtype, checkpoint.plain)
    items = _items(checkpoint, chosen, target_dtype, settings.get("block_size"))
    shards = _shards(items, shard_bytes)
    target = pathlib.Path(target).absolute()
    partial = target.with_name(target.name + ".partial")
    nbytes = sum(item.nbytes for item in items)
    plan = _plan(checkpoint, items, shards, target, (chosen, target_dtype))
    log(str(plan))
    check_target(target)
    companions.check(checkpoint.directory, checkpoint.checkpoint.manifest.tokenizer)
    if dry_run:
        return
    plan.check_room()
    lock = RunLock(claim_partial(partial, _PLAN))
    try:
        _check_plan(partial, checkpoint, settings, shards)
        progress = Progress(nbytes, "to-torch")
        sha256s = _write_shards(_Export(checkpoint, chosen, target_dtype, partial, progress), shards)
        _write_small_files(partial, settings, shards, sha256s)
        card = released.model_card(checkpoint.config, chosen, len(items), nbytes, target_dtype)
        write(partial / "README.md", card.encode())
        _export_tokenizer(checkpoint, partial, log)
        _give_final_name(partial, target)
    finally:
        lock.close()
    log(progress.finish())


def _items(checkpoint: CheckpointSource, dialect: Dialect, dtype: str, block: int | None) -> list[Item]:
    itemsize = np.dtype(dtype).itemsize
    origins = {dialect.torch_name(tensor): tensor for tensor in checkpoint.tensors}
    items = [Item(name, t.shape, table.num_elements(t) * itemsize, t) for name, t in origins.items()]
    if dialect.native:
        made = decay.buffers(checkpoint.config.model, block)
        items += [Item(b.name, b.shape, int(np.prod(b.shape)) * itemsize, b) for b in made]
    return items


def _shards(items: list[Item], limit: int) -> dict[str, list[Item]]:
    """File name -> its tensors; neighbours together until a file is full, its header counted."""
    groups: list[list[Item]] = []
    size = limit + 1
    for item in items:
        nbytes = item.nbytes + ShardFile.header_bytes(item.name)
        if size + nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += nbytes
    if len(groups) == 1:
        return {files.SINGLE: groups[0]}
    return {f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups)}


def _plan(checkpoint, items, shards, target, chosen) -> Plan:
    dialect, dtype = chosen
    partial = target.with_name(target.name + ".partial")
    done = sum(p.lstat().st_size for p in partial.glob("*.safetensors")) if partial.is_dir() else 0
    elements = sum(map(table.num_elements, checkpoint.tensors))
    notes = [f"dialect {dialect.name}, {checkpoint.dtype} -> {dtype}, {len(shards)} shard{'s' * (len(shards) > 1)}"]
    made = len(items) - len(checkpoint.tensors)
    if made:
        notes.append(f"{made} decay buffers are made anew")
    nbytes = sum(item.nbytes for item in items)
    return Plan(
        tensors=len(items),
        bytes_in=elements * np.dtype(checkpoint.dtype).itemsize,
        bytes_out=nbytes,
        bytes_done=min(done, nbytes),
        target=target,
        notes=tuple(notes),
    )


def _check_plan(partial: pathlib.Path, checkpoint: CheckpointSource, settings: dict, shards: dict) -> None:
    names = {shard: [item.name for item in items] for shard, items in shards.items()}
    plan = json.dumps([checkpoint.checkpoint.manifest.tree_sha256(), settings, names], sort_keys=True)
    path = partial / _PLAN
    if os.path.lexists(path) and TYPED.text(path, root=partial) != plan:
        raise ValueError(f"{partial} holds another interrupted conversion; remove it to start anew")
    write(path, plan.encode())


@dataclasses.dataclass(frozen=True)
class _Export:
    checkpoint: CheckpointSource
    dialect: Dialect
    dtype: str
    partial: pathlib.Path
    progress: Progress

    def array(self, item: Item) -> np.ndarray:
        """The tensor in PyTorch's layout; bits that came in under this name must go out under it."""
        if isinstance(item.origin, decay.Buffer):
            return decay.value(item.origin, self.checkpoint.config.model).astype(self.dtype)
        row, sizes = item.origin.row, item.origin.sizes
        chunk = self.checkpoint.read(item.origin).astype(self.dtype, copy=False)
        return axes.rearrange(chunk, row.our_axes, row.torch_axes, sizes)

    def shard(self, name: str, items: list[Item]) -> dict[str, str]:
        """Writes one shard durably; tensor -> SHA-256."""
        temporary = self.partial / (name + ".tmp")
        with ShardFile(temporary, [(i.name, i.shape, i.nbytes) for i in items], self.dtype) as file:

            def one(item: Item) -> str:
                self.progress.start(item.name, item.nbytes)
                array = self.array(item)
                file.write(item.name, array)
                self.progress.add(item.nbytes)
                return files.sha256(array)

            sha256s = parallel.for_each(items, lambda item: item.nbytes, one)
            file.sync()
        shard_sha256s = dict(zip((item.name for item in items), sha256s, strict=True))
        self._compare(name, shard_sha256s)
        temporary.rename(self.partial / name)
        sync_directory(self.partial)
        return shard_sha256s

    def _compare(self, shard: str, sha256s: dict[str, str]) -> None:
        known = self.checkpoint.checkpoint.manifest.source_sha256
        origin = self.checkpoint.origin
        if origin is None or origin.dtype != self.dtype or self.checkpoint.dtype != self.dtype:
            return
        differ = [name for name, sha256 in sha256s.items() if known.get(name, sha256) != sha256]
        if differ:
            raise CheckpointError(f"{self.partial / shard}: tensor {differ[0]}: not the bits that were converted")


def _write_shards(export: _Export, shards: dict[str, list[Item]]) -> dict[str, str]:
    """All shards; those an earlier run finished are read back and compared instead."""
    journal, sha256s = export.partial / _JOURNAL, {}
    lines = TYPED.read(journal, root=export.partial).split(b"\n") if os.path.lexists(journal) else []
    noted = dict(filter(None, map(_entry, lines)))  # the last line may be cut
    write(journal, "".join(json.dumps(entry) + "\n" for entry in noted.items()).encode())
    for name, items in shards.items():
        shard_sha256s = noted.get(name)
        if shard_sha256s is not None and _holds(export.partial / name, shard_sha256s):
            export.progress.add(sum(item.nbytes for item in items))
        else:
            shard_sha256s = export.shard(name, items)
            with os.fdopen(update(journal, os.O_APPEND), "a") as file:
                file.write(json.dumps([name, shard_sha256s]) + "\n")
        sha256s |= shard_sha256s
    return sha256s


def _entry(line: bytes) -> tuple[str, dict] | None:
    """A line of the journal; None of what is none, whose shard is written again."""
    try:
        name, sha256s = parse_json(line)
        return (name, sha256s) if isinstance(name, str) and isinstance(sha256s, dict) else None
    except (ValueError, TypeError):
        return None


def _holds(path: pathlib.Path, sha256s: dict[str, str]) -> bool:
    """Whether a shard of an earlier run is whole."""
    try:
        FILES.check(path, root=path.parent)
        with safetensors.safe_open(path, framework="numpy") as shard:
            names = list(shard.keys())
            return sorted(names) == sorted(sha256s) and all(
                files.sha256(shard.get_tensor(name)) == sha256s[name] for name in names
            )
    except (safetensors.SafetensorError, OSError, CheckpointError):
        return False


def _write_small_files(partial: pathlib.Path, settings: dict, shards: dict, sha256s: dict[str, str]) -> None:
    write_json(partial / "config.json", settings)
    if list(shards) != [files.SINGLE]:
        weight_map = {item.name: shard for shard, items in shards.items() for item in items}
        total = sum(item.nbytes for items in shards.values() for item in items)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(partial / files.INDEX, index)
    written = files.TensorFiles(partial)  # the last word on what lies here is the reader's
    listed = {"files": written.small_sha256s(), "headers": written.header_sha256s, "tensors": sha256s}
    write_json(partial / files.SHA256S, listed)


def _export_tokenizer(checkpoint: CheckpointSource, partial: pathlib.Path, log: Callable[[str], None]) -> None:
    named = checkpoint.config.data.tokenizer if checkpoint.origin is None else None  # a conversion's is a placeholder
    if said := companions.export(checkpoint.directory, partial, named, checkpoint.checkpoint.manifest.tokenizer):
        log(said)


def _give_final_name(partial: pathlib.Path, target: pathlib.Path) -> None:
    partial.rename(target)
    sync_directory(target.parent)
    for name in (_JOURNAL, _PLAN, RunLock.NAME):
        (target / name).unlink()
