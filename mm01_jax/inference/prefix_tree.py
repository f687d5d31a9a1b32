"""The pieces of the tree of `prefix.py`, and what of a prompt they are known by."""

import dataclasses
import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np


@dataclasses.dataclass(eq=False)
class Node:
    """A piece behind those before it. digest: of all tokens up to its end, and of what they mean besides. gone: out of
    the tree."""

    parent: "Node | None"
    digest: bytes
    depth: int
    children: dict[bytes, "Node"] = dataclasses.field(default_factory=dict)
    page: Any = None
    state: Any = None
    on_host: bool = False
    used: int = 0
    gone: bool = False


class Found(NamedTuple):
    """pages of the pieces to go on from, first to last, and the states after them (None: no piece). miss: why not all
    pieces of the prompt. known: pieces of the prompt that are here, with states or not."""

    pages: list[Any]
    state: Any
    miss: str | None
    known: int


_ALONE = b"alone"  # of another length than what is seen


def pieces_of(
    tokens: np.ndarray, seen: np.ndarray | None, grid: int, rest: int | None = None, first: int = 0
) -> list[bytes]:
    """The keys of the whole pieces: their tokens, what is seen at them where anything is, a mark from `rest` on.

    Args:
      first: which token of the prompt the first of these is.
    """
    tokens = np.ascontiguousarray(tokens, np.int32)
    keys = [tokens[start : start + grid].tobytes() for start in range(0, len(tokens) // grid * grid, grid)]
    if seen is not None:
        shown = [seen[number * grid : (number + 1) * grid] for number in range(len(keys))]
        keys = [key + (part.tobytes() if part.any() else b"") for key, part in zip(keys, shown, strict=True)]
    if rest is None:
        return keys
    blocks = max(0, rest - first) // grid
    return keys[:blocks] + [key + _ALONE for key in keys[blocks:]]


def is_cut_else(key: bytes, other: bytes) -> bool:
    """Whether two keys are of the same tokens and pixels, one of them with the mark."""
    return key != other and key.removesuffix(_ALONE) == other.removesuffix(_ALONE)


def is_last_here(node: Node) -> bool:
    """Whether nothing behind it is on the devices."""
    return all(child.on_host for child in node.children.values())


def digest_of(before: bytes, key: bytes) -> bytes:
    return hashlib.sha256(len(before).to_bytes(8, "little") + before + key).digest()


def bytes_of(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
