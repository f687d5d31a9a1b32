"""How a pytree lies on disk: the name of each leaf, its logical chunks, and the grid of its files.

A logical chunk is one index of a leaf's leading stack axes: (period, layer), and expert for an expert's matrices. A
file holds one box of the array and is divided into blocks; a block never spans two chunks, and is at most one device's
shard along the other axes, so that no two devices write one file.
"""

import math
import re

import jax
import numpy as np
from flax import nnx

WEIGHTS = "model/"  # leaves of a TrainState that are weights; a converted checkpoint has no others
FILE_BYTES = 256 * 2**20  # no file holds more than this, which bounds the memory that encoding one takes
DTYPES = ("bfloat16", "float16", "float32", "int32", "uint32", "int16", "uint16", "int8", "uint8", "bool")
_KEY = re.compile(r"[A-Za-z0-9_]+")


def stack_axes(path: str) -> int:
    """Number of leading stack axes of the leaf at `path`, for a weight, a gradient or an optimiser moment alike.

    Weights of a run are stacked (period, layer); the matrices of experts (period, layer, expert).
    """
    keys = path.split("/")
    if "runs" not in keys:
        return 0
    return 3 if keys[-2] == "experts" and keys[-1] in ("gate", "up", "down") else 2


def leaf_paths(tree) -> list[str]:
    """Path of every leaf in flattening order, keys joined with "/"; an `nnx.Variable` is one leaf, not a level.

    Raises:
      ValueError: a key that could not be a file name, or two leaves with one path.
    """
    with_paths, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
    paths = ["/".join(_key_text(key) for key in keys) for keys, _ in with_paths]
    if len(set(paths)) != len(paths):
        raise ValueError(f"two leaves share the path {next(p for p in paths if paths.count(p) > 1)!r}")
    return paths


def _key_text(key) -> str:
    text = jax.tree_util.keystr((key,), simple=True)
    if not _KEY.fullmatch(text):
        raise ValueError(f"key {text!r} of a leaf's path cannot be stored: allowed are letters, digits and _")
    return text


def is_leaf_path(path: str) -> bool:
    """Whether `path` could have come from `leaf_paths` (a manifest is not trusted to name files outside itself)."""
    return all(_KEY.fullmatch(key) for key in path.split("/"))


def file_grid(
    shape: tuple[int, ...], shard: tuple[int, ...], num_stack: int, itemsize: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the files and of the blocks in them, for a leaf of which each device holds a box of shape `shard`.

    A file takes as many neighbouring chunks of its device as fit into FILE_BYTES; a chunk larger than that is divided.
    """
    if 0 in shape:
        raise ValueError(f"shape={shape} has no elements; an empty leaf cannot be stored")
    block = [1] * num_stack + list(shard[num_stack:])
    for axis in range(num_stack, len(shape)):
        block[axis] = _largest_divisor(block[axis], FILE_BYTES // (math.prod(block) // block[axis] * itemsize))
    file = list(block)
    for axis in reversed(range(num_stack)):
        file[axis] = _largest_divisor(shard[axis], FILE_BYTES // (math.prod(file) * itemsize))
        if file[axis] < shard[axis]:
            break
    return tuple(file), tuple(block)


def _largest_divisor(n: int, limit: int) -> int:
    return max(d for d in range(1, max(1, min(n, limit)) + 1) if n % d == 0)


def boxes(bounds: tuple[slice, ...], file: tuple[int, ...]):
    """The parts, one per file, of the box `bounds` of an array: tuples of slices in row-major order."""
    starts = [range(s.start, s.stop, f) if s.start % f == 0 else None for s, f in zip(bounds, file, strict=True)]
    assert None not in starts, (bounds, file)
    grid = np.indices([len(s) for s in starts]).reshape(len(starts), math.prod(len(s) for s in starts))
    for cell in grid.T:
        yield tuple(slice(s[i], min(s[i] + f, b.stop)) for s, i, f, b in zip(starts, cell, file, bounds, strict=True))


def file_names(path: str, bounds: tuple[slice, ...], file: tuple[int, ...]) -> list[str]:
    """Names, relative to the checkpoint, of the files that hold the box `bounds` of the leaf at `path`."""
    spans = [range(s.start // f, -(-s.stop // f)) for s, f in zip(bounds, file, strict=True)]
    grid = np.indices([len(s) for s in spans]).reshape(len(spans), -1).T if spans else [()]
    return ["/".join([leaf_directory(path), "c", *(str(s[i]) for s, i in zip(spans, c, strict=True))]) for c in grid]


def leaf_directory(path: str) -> str:
    """Directory, relative to the checkpoint, of one leaf's zarr array."""
    return "arrays/" + path.replace("/", ".")
