"""The manifest: what a checkpoint holds and the digest of all of it, in one JSON file that checks itself.

    {"sha256": "<of every byte after this line>",
    "format": "mm01-checkpoint-2", "step": 200, "tree_sha256": "...", "meta": {...}, "versions": {...},
    "files": {"config.json": "<sha256>"}, "source_sha256": {"<source tensor>": "<sha256>"},
    "leaves": {"model/embed": {"shape": [..], "dtype": "bfloat16", "stack": 0, "file": [..], "block": [..],
                               "lanes": "<32 hex digits per chunk, in index order>", "sha256": "..."}, ...}}

The manifest is enough to read the arrays: a reader trusts no other metadata.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import pathlib
import platform
import re

import numpy as np

from mm01_jax.checkpoint import digest, disk_grid, plain
from mm01_jax.checkpoint.errors import FILES, CheckpointError, OtherVersion
from mm01_jax.config import saved
from mm01_jax.files import shown

NAME = "manifest.json"
CONFIG = "config.json"
MOST_BYTES = 16 * 2**20  # of a manifest: that of 456 B parameters has 808,252
_FORMAT = "mm01-checkpoint-2"
# Formats that are not read any more -> who wrote them, and what to do.
_OLD_FORMATS = {
    "mm01-checkpoint-1": "written by mm01_jax 0.1; this is 0.2, whose layers and config have other names: go on with "
    "0.1, or take its weights along (mm01-convert to-torch of 0.1, then mm01-convert from-torch of 0.2)"
}
_FIRST_LINE = re.compile(rb'\{"sha256": "([0-9a-f]{64})",\n')
_BODY = {
    "step": plain.Kind(f"null or {plain.WHOLE.words}", lambda step: step is None or plain.WHOLE.holds(step)),
    "tree_sha256": plain.SHA256,
    "meta": plain.OBJECT,
    "versions": plain.OBJECT,
    "files": plain.Kind(
        f"an object with {CONFIG} alone", lambda files: type(files) is dict and [*files] == [CONFIG], plain.SHA256
    ),
    "source_sha256": plain.objects_of(plain.SHA256),
    "leaves": plain.OBJECT,
}
_LEAF = {
    "shape": plain.SIZES,
    "dtype": plain.one_of(*disk_grid.DTYPES),
    "stack": plain.WHOLE,
    "file": plain.SIZES,
    "block": plain.SIZES,
    "lanes": plain.Kind("hex digits", lambda x: isinstance(x, str) and bool(re.fullmatch("(?:[0-9a-f]{8})*+", x))),
    "sha256": plain.SHA256,
}
_PACKAGES = ("mm01_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    """One stored array: shape, dtype name, number of leading stack axes, the shapes of its files and blocks."""

    shape: tuple[int, ...]
    dtype: str
    stack: int
    file: tuple[int, ...]
    block: tuple[int, ...]
    lanes: np.ndarray | None = None  # uint32, shape[:stack] + (4,): the digest of each logical chunk

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def bounds(self, index: tuple[int, ...]) -> tuple[slice, ...]:
        """The box of logical chunk `index`."""
        return tuple(slice(i, i + 1) for i in index) + tuple(slice(0, n) for n in self.shape[self.stack :])

    def with_lanes(self, lanes: np.ndarray) -> "Leaf":
        """This leaf with the digests of its chunks."""
        return dataclasses.replace(self, lanes=lanes)

    def check_grid(self) -> None:
        """Raises ValueError where it has more files or blocks than any leaf of ours."""
        files = math.prod(-(-n // f) for n, f in zip(self.shape, self.file, strict=True))
        blocks = math.prod(f // b for f, b in zip(self.file, self.block, strict=True))
        if files > disk_grid.MOST_FILES or blocks > disk_grid.MOST_BLOCKS:
            most = f"at most {disk_grid.MOST_FILES:,} files of {disk_grid.MOST_BLOCKS:,} blocks"
            raise ValueError(f"shape={self.shape} file={self.file} block={self.block}: allowed are {most}")

    @property
    def small_files(self) -> int:
        """Files of less than 4 KiB, beyond the one that any leaf has; none where no other grid could be."""
        return self._small(self.file)

    @property
    def small_blocks(self) -> int:
        """Blocks of less than 4 KiB, likewise."""
        return self._small(self.block)

    def _small(self, box: tuple[int, ...]) -> int:
        itemsize = np.dtype(self.dtype).itemsize
        if math.prod(box) * itemsize >= disk_grid.SMALL_BYTES:
            return 0
        count = math.prod(-(-n // f) * (f // b) for n, f, b in zip(self.shape, self.file, box, strict=True))
        return 0 if disk_grid.is_cut(self.shape, self.block, self.stack, itemsize) else count - 1

    def __post_init__(self):
        shapes = (self.shape, self.file, self.block)
        if self.dtype not in disk_grid.DTYPES:
            raise ValueError(f"dtype={self.dtype} cannot be stored: allowed are {', '.join(disk_grid.DTYPES)}")
        if any(type(n) is not int or n < 1 for shape in shapes for n in shape):
            raise ValueError(f"shape={self.shape} file={self.file} block={self.block}: allowed are positive integers")
        if len({len(shape) for shape in shapes}) > 1 or not 0 <= self.stack <= len(self.shape):
            raise ValueError(f"stack={self.stack} shape={self.shape} file={self.file} block={self.block} disagree")
        if any(f > n or f % b for n, f, b in zip(*shapes, strict=True)):
            raise ValueError(
                f"shape={self.shape} file={self.file} block={self.block}: blocks fill files, files the shape"
            )
        if math.prod(self.shape[self.stack :]) >= 2**32:
            raise ValueError(f"shape={self.shape} stack={self.stack}: a chunk has at most 2**32 - 1 elements")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything the manifest file says; `meta` is the writer's own JSON object (mesh, data position, ...)."""

    leaves: dict[str, Leaf]
    files: dict[str, str]  # small file -> its SHA-256
    step: int | None = None  # None: a conversion, not a training step
    meta: dict = dataclasses.field(default_factory=dict)
    versions: dict = dataclasses.field(default_factory=dict)
    source_sha256: dict = dataclasses.field(default_factory=dict)  # source tensor -> SHA-256 of its bytes

    @property
    def tokenizer(self) -> str | None:
        """The fingerprint of the tokenizer that the weights were trained with; None of what is of no run."""
        data = self.meta.get("data")
        return data.get("tokenizer") if isinstance(data, dict) else None

    def weights(self) -> dict[str, Leaf]:
        """The leaves of the model, by their paths in it."""
        n = len(disk_grid.WEIGHTS)
        return {path[n:]: leaf for path, leaf in self.leaves.items() if path.startswith(disk_grid.WEIGHTS)}

    def leaf_sha256(self, path: str) -> str:
        leaf = self.leaves[path]
        return digest.leaf_sha256(path, leaf.shape, leaf.dtype, leaf.lanes)

    def tree_sha256(self, prefix: str = "") -> str:
        """One digest of all leaves whose path starts with `prefix`: equal on every mesh."""
        return digest.tree_sha256({p: self.leaf_sha256(p) for p in self.leaves if p.startswith(prefix)})

    def to_bytes(self) -> bytes:
        leaves = {
            path: {
                "shape": leaf.shape,
                "dtype": leaf.dtype,
                "stack": leaf.stack,
                "file": leaf.file,
                "block": leaf.block,
                "lanes": leaf.lanes.astype("<u4").tobytes().hex(),
                "sha256": self.leaf_sha256(path),
            }
            for path, leaf in self.leaves.items()
        }
        body = {"format": _FORMAT, "step": self.step, "tree_sha256": self.tree_sha256(), "meta": self.meta}
        body |= {"versions": self.versions, "files": self.files, "source_sha256": self.source_sha256}
        rest = json.dumps(body)[1:-1] + ',\n"leaves": {\n'
        rest += ",\n".join(f"{json.dumps(path)}: {json.dumps(leaf)}" for path, leaf in leaves.items()) + "\n}}\n"
        raw = rest.encode()
        return b'{"sha256": "' + hashlib.sha256(raw).hexdigest().encode() + b'",\n' + raw


def read(directory: pathlib.Path, most_leaves: int = disk_grid.MOST_LEAVES) -> Manifest:
    """The manifest of a checkpoint, after its own checksum and those of the small files beside it.

    Raises:
      CheckpointError: a file is missing, cut, altered or not ours; the message names it.
    """
    manifest = read_file(directory / NAME, most_leaves)
    for name, sha256 in manifest.files.items():
        if hashlib.sha256(FILES.read(directory / name, root=directory, most=saved.MOST_BYTES)).hexdigest() != sha256:
            raise CheckpointError(f"{directory / name}: the file does not match its checksum in {NAME}")
    return manifest


def read_file(path: pathlib.Path, most_leaves: int = disk_grid.MOST_LEAVES) -> Manifest:
    """A manifest by itself, after its own checksum.

    Raises:
      OtherVersion: a version wrote it whose checkpoints are not read any more.
      CheckpointError: it is missing, cut, altered or not ours; a key that is missing or of another type is named.
    """
    return _read(FILES.read(path, root=path.parent, most=MOST_BYTES), path, most_leaves)


@functools.lru_cache(maxsize=1)  # a command opens its checkpoint several times
def _read(raw: bytes, path: pathlib.Path, most_leaves: int) -> Manifest:
    first = _FIRST_LINE.match(raw)
    if not first or hashlib.sha256(raw[first.end() :]).hexdigest().encode() != first[1]:
        raise CheckpointError(f"{path}: the manifest does not match its own checksum")
    body = FILES.parse(path, raw)
    if isinstance(body.get("format"), str) and body["format"] in _OLD_FORMATS:
        raise OtherVersion(f"{path}: {_OLD_FORMATS[body['format']]}")
    plain.check_keys(body, {"format": plain.one_of(_FORMAT)}, path)
    plain.check_keys(body, _BODY, path)
    if len(body["leaves"]) > most_leaves:
        raise CheckpointError(f"{path}: leaves: got {len(body['leaves']):,}; allowed: at most {most_leaves:,}")
    leaves = {name: _leaf(name, entry, path) for name, entry in body["leaves"].items()}
    _check_small(leaves, path)
    keys = ("files", "step", "meta", "versions", "source_sha256")
    manifest = Manifest(leaves=leaves, **{key: body[key] for key in keys})
    if digest.tree_sha256({name: body["leaves"][name]["sha256"] for name in leaves}) != body["tree_sha256"]:
        raise CheckpointError(f"{path}: tree_sha256 does not follow from the digests of the leaves")
    return manifest


def _leaf(name: str, entry: dict, path: pathlib.Path) -> Leaf:
    if not disk_grid.is_leaf_path(name):
        raise CheckpointError(f"{path}: leaves: {shown(name)!r} is not the path of a leaf")
    plain.check_keys(entry, _LEAF, path, f"leaves.{name}")
    lanes = np.frombuffer(bytes.fromhex(entry["lanes"]), "<u4").astype(np.uint32)
    shapes = {key: tuple(entry[key]) for key in ("shape", "file", "block")}
    try:
        leaf = Leaf(**shapes, dtype=entry["dtype"], stack=entry["stack"])
    except ValueError as error:
        raise CheckpointError(f"{path}: leaves.{name}: {error}") from None
    chunks = leaf.shape[: leaf.stack]
    if lanes.size != math.prod(chunks) * digest.LANES:
        got = f"{lanes.size / digest.LANES:g} digests for {math.prod(chunks):,} chunks"
        raise CheckpointError(f"{path}: leaves.{name}.lanes: got {got}; allowed: one each")
    try:
        leaf.check_grid()
    except ValueError as error:
        raise CheckpointError(f"{path}: leaves.{name}: {error}") from None
    leaf = leaf.with_lanes(lanes.reshape(*chunks, digest.LANES))
    if entry["sha256"] != digest.leaf_sha256(name, leaf.shape, leaf.dtype, leaf.lanes):
        raise CheckpointError(f"{path}: leaves.{name}.sha256 does not follow from its shape, dtype and lanes")
    return leaf


def _check_small(leaves: dict[str, Leaf], path: pathlib.Path) -> None:
    weights = [leaf for name, leaf in leaves.items() if name.startswith(disk_grid.WEIGHTS)]
    for read in (weights, leaves.values()):  # who reads weights alone never sees how large the others are
        nbytes = sum(leaf.nbytes for leaf in read)
        for what, floor in (("files", disk_grid.MOST_SMALL_FILES), ("blocks", disk_grid.MOST_SMALL_BLOCKS)):
            small, most = sum(getattr(leaf, f"small_{what}") for leaf in read), floor + nbytes // disk_grid.SMALL_BYTES
            if small > most:
                got = f"{small:,} {what} of less than {disk_grid.SMALL_BYTES:,} bytes; allowed: at most {most:,}"
                raise CheckpointError(f"{path}: leaves: {got} of {nbytes:,} bytes")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a run."""
    installed = {dist.name: dist.version for dist in map(_distribution, _PACKAGES) if dist is not None}
    return {"python": platform.python_version()} | installed


def _distribution(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return None
