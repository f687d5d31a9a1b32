"""A directory of safetensors files: checked before it is trusted, then read tensor by tensor through the library.

Shard names come from an index that anybody may have written: they must be plain names of regular files inside the
directory. Nothing outside it is opened.
"""

import functools
import hashlib
import os
import pathlib
import threading
from collections.abc import Collection, Iterator

import numpy as np
from safetensors import SafetensorError, safe_open

from mm01_jax.checkpoint import FILES, CheckpointError, check_keys
from mm01_jax.checkpoint.plain import SHA256, objects_of
from mm01_jax.convert.torch import header
from mm01_jax.data.tokenizer import MOST_BYTES
from mm01_jax.files import quoted, shown
from mm01_jax.messages import listing
from mm01_jax.values import nearest_words

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHA256S = "sha256.json"  # of tensors, headers and small files, written beside every export
_ADAPTER = "adapter_config.json"  # of a LoRA: transformers adds it to the weights beside it
_MOST_SHARDS = 4_000  # Text-01 has 413
_MOST_FILES = 100  # beside the shards, in a list; each is read
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# Rows of one read: they are hashed and transposed before they leave the processor's cache. Read through the library,
# a gigabyte took 0.93 s of processor time; so it takes 0.05.
_BLOCK_BYTES = 4 * 2**20


class TensorFiles:
    """The tensors of a directory: `entries` (name -> header entry) and `shard` (name -> file name).

    Raises:
      CheckpointError: a structural fault, which file and tensor it is in.
    """

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        if not self.directory.is_dir():
            raise CheckpointError(
                f"{directory}: not a directory{_pickle_advice([self.directory.name])}{nearest_words(directory)}"
            )
        if os.path.lexists(self.directory / _ADAPTER):
            what = "an adapter lies here, which changes what the weights compute; allowed: weights it is merged into"
            raise CheckpointError(f"{self.directory / _ADAPTER}: {what}")
        index = self._index()
        shards = sorted(set(index.values())) if index is not None else [self._single()]
        read, taken = {}, 0
        for shard in shards:
            read[shard] = header.read(self.directory / shard, self.directory, taken)
            taken += read[shard].data
        headers = {shard: shard_header.entries for shard, shard_header in read.items()}
        self.header_sha256s = {shard: shard_header.sha256 for shard, shard_header in read.items()}
        self._data = {shard: shard_header.data for shard, shard_header in read.items()}
        self.shard = {name: shard for shard, entries in headers.items() for name in entries}
        if index is not None:
            self._check_index(index, headers)
        self.entries = {name: entry for entries in headers.values() for name, entry in entries.items()}
        self._open = threading.local()

    def json(self, name: str) -> dict:
        """The JSON object in a file of the directory."""
        return FILES.json(self.directory / name, root=self.directory)

    def small_sha256s(self, listed: Collection[str] = ()) -> dict[str, str]:
        """SHA-256 of config.json, of the index, where there is one, and of the files that a list has besides.

        Raises:
          CheckpointError: what is listed is no plain name of a file that lies here.
        """
        where = self.directory / SHA256S
        if len(listed) > _MOST_FILES:
            raise CheckpointError(f"{where}: files: lists {len(listed):,}; allowed: at most {_MOST_FILES:,}")
        for name in listed:
            if not _plain_name(name) or not os.path.lexists(self.directory / name):
                raise CheckpointError(f"{where}: files: got {quoted(name)}; allowed: names of files that lie beside it")
        names = {name for name in ("config.json", INDEX) if (self.directory / name).exists()} | set(listed)
        read = functools.partial(FILES.read, root=self.directory, most=MOST_BYTES)
        return {name: hashlib.sha256(read(self.directory / name)).hexdigest() for name in sorted(names)}

    def _index(self) -> dict[str, str] | None:
        path = self.directory / INDEX
        if not os.path.lexists(path):
            return None
        weight_map = FILES.json(path, root=self.directory, most=header.MAX_HEADER_BYTES).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{path}: no weight_map from tensor names to shards")
        for name, shard in weight_map.items():
            if not _plain_name(shard) or not shard.endswith(".safetensors"):
                got = f"tensor {quoted(name)}: shard {quoted(shard)}"
                what = f"{got} is not the plain name of a .safetensors file"
                advice = _pickle_advice([shard]) if isinstance(shard, str) else ""
                raise CheckpointError(f"{path}: {what}{advice}")
        if (count := len(set(weight_map.values()))) > _MOST_SHARDS:
            raise CheckpointError(f"{path}: names {count:,} shards; allowed: at most {_MOST_SHARDS:,}")
        surplus = sorted({p.name for p in self.directory.glob("*.safetensors")} - set(weight_map.values()))
        if surplus:
            names = listing(surplus, ", ", shown)
            raise CheckpointError(f"{path}: does not name the shards {names} that lie beside it")
        return weight_map

    def _single(self) -> str:
        names = sorted(path.name for path in self.directory.iterdir())
        files = [name for name in names if name.endswith(".safetensors")]
        if len(files) == 1:
            return files[0]
        if not files:
            ours = "; it is a checkpoint of mm01_jax, which to-torch reads" if "state" in names else ""
            raise CheckpointError(f"{self.directory}: no .safetensors file{ours}{_pickle_advice(names)}")
        raise CheckpointError(f"{self.directory}: {len(files)} .safetensors files and no {INDEX} to name them")

    def _check_index(self, index: dict[str, str], headers: dict[str, dict]) -> None:
        problems = []
        for name, shard in index.items():
            if name not in headers[shard]:
                problems.append(f"{quoted(name)} is not in {shard}, where the index puts it")
        for shard, entries in headers.items():
            unknown = (name for name in entries if name not in index)
            problems += [f"{quoted(name)} is in {shard}, unknown to the index" for name in unknown]
            twice = (name for name in entries if index.get(name, shard) != shard)
            problems += [f"{quoted(name)} is in {shard} and in {index[name]}" for name in twice]
        if problems:
            raise CheckpointError(f"{self.directory / INDEX}: {listing(problems)}")

    def handle(self, name: str):
        """The library's handle of the tensor's shard, one per thread."""
        handles = self._open.__dict__.setdefault("handles", {})
        shard = self.shard[name]
        if shard not in handles:
            handles.clear()  # maps of more than one shard at a time would only add up
            FILES.check(self.directory / shard, root=self.directory)
            try:
                handles[shard] = safe_open(self.directory / shard, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{self.directory / shard}: tensor {quoted(name)}: {error}") from error
        return handles[shard]

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of a tensor; the whole of a tensor without axes."""
        try:
            handle = self.handle(name)
            if not self.entries[name].shape:
                return handle.get_tensor(name)
            return handle.get_slice(name)[start:stop]
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{self.directory / self.shard[name]}: tensor {quoted(name)}: {error}") from error

    def box(self, name: str, bounds: tuple[slice, ...]) -> np.ndarray:
        """A box of a tensor."""
        try:
            return self.handle(name).get_slice(name)[bounds]
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{self.directory / self.shard[name]}: tensor {quoted(name)}: {error}") from error

    def blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) of a tensor that has axes; the rows are overwritten by the next block."""
        entry, shard = self.entries[name], self.shard[name]
        rows = entry.shape[0]
        step = max(1, _BLOCK_BYTES * rows // max(1, entry.stop - entry.start))
        buffer = np.empty((min(step, rows), *entry.shape[1:]), header.DTYPES[entry.dtype])
        try:
            with FILES.open(self.directory / shard, root=self.directory, buffering=0) as file:
                file.seek(self._data[shard] + entry.start)
                for start in range(0, rows, step):
                    block = buffer[: min(step, rows - start)]
                    _read_into(file, block)
                    yield start, block
        except OSError as error:
            raise CheckpointError(f"{self.where(name)}: {error}") from error

    def where(self, name: str) -> str:
        """File and tensor, for a message."""
        return f"{self.directory / self.shard[name]}: tensor {quoted(name)}"


def _read_into(file, block: np.ndarray) -> None:
    """Fills `block` with the next bytes of an unbuffered file."""
    left = memoryview(block.reshape(-1).view(np.uint8))
    while left:
        done = file.readinto(left)
        if not done:
            raise OSError(f"cut while it was read, {len(left)} bytes early")
        left = left[done:]


def update_sha256(total, block: np.ndarray) -> None:
    """Adds a block's bytes to a hashlib object."""
    total.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)


def sha256(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes, row-major."""
    total = hashlib.sha256()
    update_sha256(total, array)
    return total.hexdigest()


def check_sha256s(path: pathlib.Path, listed: dict) -> dict[str, dict[str, str]]:
    """The content of a sha256.json: of tensors, and of headers and small files where it lists them.

    Raises:
      CheckpointError: a key is missing or of another type.
    """
    kinds = ["tensors", *(kind for kind in ("headers", "files") if kind in listed)]
    check_keys(listed, dict.fromkeys(kinds, objects_of(SHA256)), path)
    return {kind: listed[kind] for kind in kinds}


def _plain_name(name: object) -> bool:
    plain = isinstance(name, str) and name.isprintable() and 0 < len(name) < 200
    return plain and not set(name) & set("/\\:") and not name.startswith(".")


def _pickle_advice(names: list[str]) -> str:
    pickled = [name for name in names if name.lower().endswith(_PICKLES)]
    if not pickled:
        return ""
    convert = "safetensors.torch.save_file(torch.load(file, weights_only=True), 'model.safetensors')"
    return f"; {shown(pickled[0])} is a pickle, which is never read here: where torch is installed, run {convert}"
