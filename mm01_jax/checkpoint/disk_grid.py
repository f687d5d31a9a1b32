"""How a pytree lies on disk: the name of each leaf, its logical chunks, and the grid of its files.

A logical chunk is one index of a leaf's leading stack axes: (period, layer), and expert for an expert's matrices. A
file holds one box of the array and is divided into blocks; a block never spans two chunks, and is at most one device's
shard along the other axes, so that no two devices write one file.
"""

import itertools
import math
import re
from collections.abc import Iterator

import jax
from flax import nnx

STACKED = ("period", "layer", "expert")  # logical axes that, in front of a leaf, count its chunks
WEIGHTS = "model/"  # leaves of a TrainState that are weights; a converted checkpoint has no others
FILE_BYTES = 128 * 2**20  # no file holds more than this, which bounds the memory that encoding one takes
# Blocks are the unit of reading: small and cut along all axes, so that a device that wants a sixteenth of a chunk does
# not read all of it, and so that tensorstore's buffers are recycled by malloc (twice the speed of 113 MB blocks).
BLOCK_BYTES = 2 * 2**20
# No leaf has more: a grid that says so is a bomb, since file and block lists cost memory before a byte is read.
MOST_FILES, MOST_BLOCKS = 2**20, 2**16  # of a leaf, of a file
# Of all leaves together, beside one for every 4 KiB of them: a file of one element takes 100 us, a block 10, as any.
MOST_SMALL_FILES, MOST_SMALL_BLOCKS, SMALL_BYTES = 2**14, 2**18, 4096
MOST_LEAVES = 10_000  # of a tree of weights and moments: the released model's has 72 with AdamW's
DTYPES = ("bfloat16", "float16", "float32", "int32", "uint32", "int16", "uint16", "int8", "uint8", "bool")
_KEY = re.compile(r"[A-Za-z0-9_]+")


def leaf_stacks(tree) -> list[int]:
    """Number of leading stack axes of every leaf, in the order of `leaf_paths`.

    An `nnx.Variable` says its logical axes (`axes` of its metadata), and so do the gradient and the moments made from
    it; a leaf that says none (a step, a count) has no stack.
    """
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
    named = [leaf.get_metadata().get("axes", ()) if isinstance(leaf, nnx.Variable) else () for leaf in leaves]
    return [sum(1 for _ in itertools.takewhile(STACKED.__contains__, axes)) for axes in named]


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

    A file takes as many neighbouring chunks of its device as fit into FILE_BYTES; a larger chunk has several files.
    """
    if 0 in shape:
        raise ValueError(f"shape={shape} has no elements; an empty leaf cannot be stored")
    block = [1] * num_stack + list(shard[num_stack:])
    while math.prod(block) * itemsize > BLOCK_BYTES:
        axis = max(range(len(block)), key=lambda a: block[a])
        block[axis] = _largest_divisor(block[axis], block[axis] - 1)
    file = list(block)
    for axis in reversed(range(len(shape))):
        room = FILE_BYTES // (math.prod(file) * itemsize)
        file[axis] *= _largest_divisor(shard[axis] // block[axis], room)
        if file[axis] < shard[axis]:
            break
    return tuple(file), tuple(block)


def _largest_divisor(n: int, limit: int) -> int:
    return max(d for d in range(1, max(1, min(n, limit)) + 1) if n % d == 0)


def is_cut(shape: tuple[int, ...], block: tuple[int, ...], num_stack: int, itemsize: int) -> bool:
    """Whether blocks are so small since `file_grid` had to cut a larger one, along an axis whose length is prime."""
    nbytes = math.prod(block) * itemsize
    parts = [n // b for n, b in zip(shape[num_stack:], block[num_stack:], strict=True) if n % b == 0]
    return any(nbytes * n > BLOCK_BYTES and nbytes * _largest_prime(n) > BLOCK_BYTES for n in parts)


def _largest_prime(n: int) -> int:
    """The largest prime factor of n; 1 of 1."""
    factor = 2
    while factor * factor <= n:
        if n % factor:
            factor += 1
        else:
            n //= factor
    return n


def boxes(bounds: tuple[slice, ...], file: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """The parts, one per file, of the box `bounds` of an array, in row-major order."""
    for cell in _cells(bounds, file):
        yield tuple(
            slice(max(i * f, s.start), min(i * f + f, s.stop)) for i, f, s in zip(cell, file, bounds, strict=True)
        )


def file_names(path: str, bounds: tuple[slice, ...], file: tuple[int, ...]) -> Iterator[str]:
    """Names, relative to the checkpoint, of the files that hold the box `bounds` of the leaf at `path`."""
    for cell in _cells(bounds, file):
        yield "/".join([leaf_directory(path), "c", *map(str, cell)])


def _cells(bounds, file):
    return itertools.product(*(range(s.start // f, -(-s.stop // f)) for s, f in zip(bounds, file, strict=True)))


def leaf_directory(path: str) -> str:
    """Directory, relative to the checkpoint, of one leaf's zarr array."""
    return "arrays/" + path.replace("/", ".")
