"""Weights to read, whatever directory they lie in: a PyTorch checkpoint of any dialect, or one of ours.

Both kinds have `config`, `tensors` (one per logical chunk), `dtype`, and `read(tensor)` -> the chunk in our layout.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mm01_jax import guard
from mm01_jax.checkpoint import Checkpoint, CheckpointError, Manifest, check_keys, open_checkpoint
from mm01_jax.checkpoint.plain import OBJECT, one_of
from mm01_jax.config import Config
from mm01_jax.convert import axes, table
from mm01_jax.convert.torch import decay, header, structure
from mm01_jax.convert.torch.dialects import DIALECTS, Dialect
from mm01_jax.convert.torch.files import SHA256S, TensorFiles, check_sha256s, sha256, update_sha256
from mm01_jax.convert.torch.settings import Settings
from mm01_jax.convert.torch.settings import read as read_settings
from mm01_jax.files import write
from mm01_jax.messages import LISTED, listing, say_once, together


class TorchSource:
    """A PyTorch checkpoint, its structure checked against its config.json.

    Raises:
      CheckpointError: a structural fault; every missing, surplus or mis-shaped tensor is named at once.
    """

    def __init__(self, directory, *, check_finite: bool = False, rounds: bool = False):
        """rounds: values of a wider dtype than the weights' may be rounded to it, because one was asked for."""
        guard.reading(directory, lambda: self._read(directory))
        self._check_finite, self._rounds = check_finite, rounds

    def _read(self, directory) -> None:
        self.files = TensorFiles(directory)
        self.directory = self.files.directory
        settings = read_settings(self.files.json("config.json"), str(self.directory / "config.json"))
        self.dialect: Dialect = settings.dialect
        self.plain = settings.plain
        self.dtype = settings.dtype or structure.common_dtype(self.files)
        self.config = with_dtype(settings.config, self.dtype)
        structure.check_count(self.config, str(self.directory / "config.json"))
        self.tensors = table.tensors(self.config.model, self.config.vision)
        self.buffers = structure.decay_buffers(self.files, self.config.model, self.dialect, self.plain)
        problems = structure.problems(self)
        if problems:
            raise CheckpointError(f"{self.directory}: {listing(problems)}")
        self.sha256s = self._known_sha256s()

    def _known_sha256s(self) -> dict[str, str]:
        """The SHA-256 of every tensor, where the directory has a list of them."""
        if not os.path.lexists(self.directory / SHA256S):
            return {}
        listed = check_sha256s(self.directory / SHA256S, self.files.json(SHA256S))
        known = listed["tensors"]
        if known.keys() != self.files.entries.keys():
            raise CheckpointError(f"{self.directory / SHA256S}: does not list the tensors of this directory")
        small = self.files.small_sha256s(listed.get("files", ()))
        for kind, sha256s in (("headers", self.files.header_sha256s), ("files", small)):
            for name, known_sha256 in sha256s.items():
                if listed.get(kind, sha256s).get(name) != known_sha256:
                    raise CheckpointError(f"{self.directory / name}: its {kind[:-1]} is not the one in {SHA256S}")
        return known

    def read(self, tensor: table.Tensor) -> np.ndarray:
        """The chunk that holds a tensor, in our layout and the dtype that this tensor is stored in."""
        return self.read_with_sha256(tensor)[0]

    def read_with_sha256(
        self, tensor: table.Tensor, count: Callable[[int], None] = lambda nbytes: None
    ) -> tuple[np.ndarray, str]:
        """The chunk and the SHA-256 of the tensor's own bytes; beside the chunk at most its size again is held.

        Args:
          count: told the bytes of every block that was read.

        Raises:
          CheckpointError: the bytes are not those of the directory's list, or are not finite where that was asked.
        """
        name, row = self.dialect.torch_name(tensor), tensor.row
        total, dtype = hashlib.sha256(), np.dtype(header.DTYPES[self.files.entries[name].dtype])
        turned = row.torch_axes.split()[::-1] == row.our_axes.split() and len(tensor.shape) == 2
        out = np.empty(tensor.chunk_shape if turned else tensor.shape, dtype)
        for start, block in self.files.blocks(name):
            update_sha256(total, block)
            if self._check_finite:
                _refuse_nonfinite(self.files.where(name), start, block)
            if turned:
                axes.transpose_into(out[:, start : start + len(block)], block)
            else:
                out[start : start + len(block)] = block
            count(block.nbytes)
        digest = total.hexdigest()
        if self.sha256s and self.sha256s[name] != digest:
            raise CheckpointError(f"{self.files.where(name)}: its SHA-256 is not the one in {SHA256S}")
        return (out if turned else axes.rearrange(out, row.torch_axes, row.our_axes, tensor.sizes)), digest

    def fitted(self, tensor: table.Tensor, array: np.ndarray, dtype) -> np.ndarray:
        """Values of a tensor in another dtype.

        Raises:
          CheckpointError: it is stored in a wider dtype than the weights, this one does not hold its values, and
            nobody asked for it.
        """
        cast = array.astype(dtype, copy=False)
        if array.dtype.name == self.dtype or self._rounds:
            return cast
        lost = np.count_nonzero((cast.astype(array.dtype) != array) & ~np.isnan(array))
        if lost:
            what = f"is {array.dtype} among {self.dtype} weights, and {lost:,} values are none of {cast.dtype}"
            raise CheckpointError(f"{self.where(tensor)}: {what}; --dtype=float32 keeps them, --dtype=bfloat16 rounds")
        return cast

    def read_box(self, tensor: table.Tensor, bounds: tuple[slice, ...]) -> np.ndarray:
        """A box of a chunk, reading little more than the box from the file; only a whole chunk can be verified."""
        row = tensor.row
        if self.sha256s and tuple(s.stop - s.start for s in bounds) == tensor.chunk_shape:
            return self.read(tensor)
        wide = axes.enclosing(bounds, row.our_axes, row.torch_axes, tensor.sizes)
        part = self.files.box(self.dialect.torch_name(tensor), wide)
        sizes = axes.sizes_inside(tensor.sizes, bounds, row.our_axes, row.torch_axes)
        ours = axes.rearrange(part, row.torch_axes, row.our_axes, sizes)
        whole = [s.stop - s.start == n for s, n in zip(bounds, ours.shape, strict=True)]
        return ours[tuple(slice(None) if fits else s for s, fits in zip(bounds, whole, strict=True))]

    def sha256(self, tensor: table.Tensor) -> str:
        """SHA-256 of the tensor's own bytes."""
        return self.read_with_sha256(tensor)[1]

    def where(self, tensor: table.Tensor) -> str:
        """File and tensor, for a message."""
        return self.files.where(self.dialect.torch_name(tensor))


class CheckpointSource:
    """One of our checkpoints: a conversion, a training step, or a run's newest sound step."""

    buffers = ()

    def __init__(self, directory, *, check_finite: bool = False):
        self.directory = pathlib.Path(directory)
        if next(self.directory.glob("*.safetensors"), None):
            raise CheckpointError(
                f"{directory}: no checkpoint of mm01_jax but a PyTorch directory, which from-torch reads"
            )
        self._check_finite = check_finite
        guard.reading(directory, lambda: self._read(directory))

    def _read(self, directory) -> None:
        self.checkpoint: Checkpoint = open_checkpoint(directory)
        say_once(self.checkpoint.notice)
        where = self.checkpoint.directory / "config.json"
        self.config: Config = self.checkpoint.config
        structure.check_count(self.config, str(where))
        if (form := self.config.compute.quantize) != "none":
            what = f"its matrices are {form}, of which conversion knows no tensors"
            raise CheckpointError(f"{directory}: {what}; use the checkpoint of floats that it was made from")
        self.tensors = table.tensors(self.config.model, self.config.vision)
        problems = structure.leaf_problems(self.checkpoint.leaves, table.leaves(self.tensors))
        if problems:
            raise CheckpointError(f"{self.directory}: {listing(problems)}")
        self.dtype = next(iter(self.checkpoint.leaves.values())).dtype
        self.origin = read_origin(self.checkpoint.manifest, self.checkpoint.directory / "manifest.json")
        self.dialect = DIALECTS["vl-01" if self.config.vision else "original"]
        self.plain: dict = {}
        if self.origin:
            if self.origin.settings.config.vision != self.config.vision:
                raise CheckpointError(f"{where}: another vision tower than in meta.source.config of manifest.json")
            self.dialect, self.plain = self.origin.settings.dialect, self.origin.settings.plain

    def read(self, tensor: table.Tensor) -> np.ndarray:
        """A chunk, verified against its digest."""
        chunk = self.checkpoint.read(tensor.leaf, tensor.index)
        if self._check_finite:
            _refuse_nonfinite(self.where(tensor), 0, chunk)
        return chunk

    def read_torch(self, tensor: table.Tensor) -> np.ndarray:
        """A tensor in PyTorch's layout."""
        return axes.rearrange(self.read(tensor), tensor.row.our_axes, tensor.row.torch_axes, tensor.sizes)

    def sha256(self, tensor: table.Tensor) -> str:
        """SHA-256 of the tensor's bytes in PyTorch's layout."""
        return sha256(self.read_torch(tensor))

    def where(self, tensor: table.Tensor) -> str:
        """Chunk and tensor, for a message."""
        return f"{self.directory}: {tensor.leaf} {list(tensor.index)} (tensor {tensor.name!r})"


class Origin(NamedTuple):
    """What a conversion read: the dtype of the source's weights and its config.json."""

    dtype: str
    settings: Settings


def read_origin(manifest: Manifest, path: pathlib.Path) -> Origin | None:
    """What the manifest at `path` says of the source; None of a training step, which has none.

    Raises:
      CheckpointError: a key is missing, of another type, or contradicts the source's config.json.
    """
    if "source" not in manifest.meta and not manifest.source_sha256:
        return None
    check_keys(manifest.meta, {"source": OBJECT}, path, "meta")
    origin = manifest.meta["source"]
    kinds = {"dialect": one_of(*DIALECTS), "dtype": one_of("bfloat16", "float32", "float16"), "config": OBJECT}
    check_keys(origin, kinds, path, "meta.source")
    settings = read_settings(origin["config"], f"{path}: meta.source.config")
    check_keys(origin, {"dialect": one_of(settings.dialect.name)}, path, "meta.source")  # as its config.json says
    return Origin(origin["dtype"], settings)


def _refuse_nonfinite(where: str, start: int, block: np.ndarray) -> None:
    """`block` begins at row `start` of what `where` names."""
    bad = ~np.isfinite(block)
    if bad.any():
        at = np.argwhere(bad)[0]
        place = (int(at[0]) + start, *map(int, at[1:]))
        raise CheckpointError(f"{where}: {int(bad.sum())} values are not finite, first {place}")


def buffer_problems(source: TorchSource | CheckpointSource) -> list[str]:
    """The first decay buffers of transformers' native class that are not this model's: they are read nowhere else."""
    problems = []
    for buffer in source.buffers:
        heads = (source.files.box(buffer.name, bounds) for bounds in decay.heads(buffer))
        if problem := decay.problem(buffer, heads, source.config.model):
            problems.append(f"{source.files.where(buffer.name)}: {problem}")
        if len(problems) == LISTED:
            return [*problems, "no decay buffer was looked at beyond these"]
    return problems


def check_buffers(source: TorchSource | CheckpointSource) -> None:
    """Raises CheckpointError where the decay buffers say that the weights compute another model."""
    if problems := buffer_problems(source):
        raise CheckpointError(listing(together(problems)))


def open_source(directory, *, check_finite: bool = False) -> TorchSource | CheckpointSource:
    """The weights in a directory of either kind."""
    kind = CheckpointSource if is_checkpoint(directory) else TorchSource
    return kind(directory, check_finite=check_finite)


def is_checkpoint(directory) -> bool:
    """Whether a directory is meant to be of our own format: a conversion, a step, or a run."""
    return any(os.path.lexists(pathlib.Path(directory) / name) for name in ("state", "checkpoints"))


def with_dtype(config: Config, dtype: str) -> Config:
    """The config with weights of this dtype; float16 weights, which no model of ours has, leave it as it is."""
    if dtype not in ("bfloat16", "float32"):
        return config
    return dataclasses.replace(config, compute=dataclasses.replace(config.compute, dtype=dtype, param_dtype=dtype))


def write_json(path: pathlib.Path, plain: dict) -> None:
    """Writes a JSON object, indented."""
    write(path, (json.dumps(plain, indent=2, allow_nan=False) + "\n").encode())
