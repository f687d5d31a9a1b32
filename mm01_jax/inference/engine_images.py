"""Images in the engine: the tower runs when tokens of an image are first taken in; a piece says what it shows.

The tower takes `tiles` tiles a call, whatever images they are of, so that it is one program, and a tile's features have
the same bits in any of them. Features stay until the whole prompt has been taken in.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mm01_jax import sharding
from mm01_jax.config import VisionConfig
from mm01_jax.data.image_grid import NEWLINE, TEXT
from mm01_jax.inference.asked import Shown
from mm01_jax.inference.engine_sizes import Sizes
from mm01_jax.model.multimodal import VLModel

MARK = 32  # bytes that say what is seen at a token: of a tile's digest, its patch, and that there is something
_DIGEST = 24


class SeenAt(NamedTuple):
    """What stands at the tokens that prefill takes in: x_RSD in the compute dtype where is_seen_RS, else their own."""

    x_RSD: jax.Array
    is_seen_RS: jax.Array


class Seen:
    """What one request shows. marks: uint8 (S, MARK), see `Prefix.find`. features: of calls of the tower, by number."""

    def __init__(self, shown: Shown, vision: VisionConfig):
        self.tiles, self.index = shown.tiles, np.asarray(shown.index, np.int32)
        self.marks = np.zeros((len(self.index), MARK), np.uint8)
        self.features: dict[int, jax.Array] = {}
        digests = [hashlib.sha256(np.ascontiguousarray(tile)).digest()[:_DIGEST] for tile in self.tiles]
        (at,) = np.nonzero(self.index > NEWLINE)
        tile, patch = np.divmod(self.index[at] - 1, vision.num_patches)
        self.marks[at, :_DIGEST] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _DIGEST)[tile]
        self.marks[at, _DIGEST : _DIGEST + 4] = patch.astype("<u4")[:, None].view(np.uint8)
        self.marks[self.index != TEXT, -1] = 1

    def marks_of(self, count: int) -> np.ndarray:
        """Those of the first `count` tokens of a text that begins with the prompt."""
        return np.pad(self.marks[:count], [(0, max(0, count - len(self.marks))), (0, 0)])


class Tower:
    """The tower as a program of an engine, and what puts its features where tokens show them.

    Args:
      groups: shards of the rows. program: makes a program of a partial and its arguments. put: puts an array onto the
        devices (`Devices`).
    """

    def __init__(self, model: VLModel, sizes: Sizes, groups: int, program: Callable, put: Callable):
        shape, tiles, self._per_group = (groups, sizes.pieces * sizes.grid), sizes.tiles, sizes.num_slots // groups
        vision, (R, S), dtype = model.vision.config, shape, jnp.dtype(model.compute.dtype)
        self._shape, self._put = shape, put
        self._tiles = (R, tiles // R, 3, vision.image_size, vision.image_size)
        self._count, self._patches = tiles, vision.num_patches
        nothing = np.zeros((R, S, model.config.embed_dim), dtype), np.zeros((R, S), np.bool_)
        self.nothing = SeenAt(put(nothing[0], "batch", None, None), put(nothing[1], "batch", None))
        empty, index = put(np.zeros(self._tiles, np.float32), "batch", "seq"), np.full(shape, TEXT, np.int32)
        self._features = program(functools.partial(_features), model, empty)
        features = self._features(model, empty)
        self._place = program(functools.partial(_place), model, self.nothing, features, put(index, "batch", None))

    def look(self, model: VLModel, work: Sequence) -> SeenAt:
        """What is seen at the tokens of some `engine_turns.Work`, at most one on a shard of the rows."""
        found, size = self.nothing, self._count * self._patches
        for one in work:
            if one.shows is None:
                continue
            (seen, first), count, group = one.shows, len(one.tokens), one.slot // self._per_group
            index = seen.index[first : first + count]
            calls = np.unique((index[index > NEWLINE] - 1) // size).tolist() or (
                [0] if (index == NEWLINE).any() else []
            )
            for number in calls:
                here = np.full(self._shape, TEXT, np.int32)
                near = index - number * size
                is_of_call = (index > NEWLINE) & (near > NEWLINE) & (near <= size)
                here[group, : len(index)] = np.where(index > NEWLINE, np.where(is_of_call, near, TEXT), index)
                placed = self._put(here, "batch", None)
                found = self._place(model, found, self._features_of(model, seen, number), placed)
            if first + count >= len(seen.index):
                seen.features.clear()
        return found

    def _features_of(self, model: VLModel, seen: Seen, number: int) -> jax.Array:
        if number not in seen.features:
            some = seen.tiles[number * self._count :][: self._count]
            some = np.pad(some, [(0, self._count - len(some)), *[(0, 0)] * 3]).reshape(self._tiles)
            seen.features[number] = self._features(model, self._put(some, "batch", "seq"))
        return seen.features[number]


def _features(model: VLModel, tiles_RTCYX: jax.Array) -> jax.Array:
    """(tiles, P, D) in the compute dtype, on every device."""
    features = model.features(tiles_RTCYX)
    features = features.reshape(-1, *features.shape[2:]).astype(model.compute.dtype)
    return jax.lax.with_sharding_constraint(features, jax.P())


def _place(model: VLModel, seen: SeenAt, features_TPD: jax.Array, index_RS: jax.Array) -> SeenAt:
    """With the features, and the newline, at the tokens that the index table names; others as they were."""
    flat, is_here_RS = features_TPD.reshape(-1, features_TPD.shape[-1]), index_RS != TEXT
    x_RSD = jnp.take(flat, jnp.maximum(index_RS - 1, 0), axis=0)
    newline = model.image_newline[...].astype(x_RSD.dtype)
    x_RSD = jnp.where((index_RS == NEWLINE)[..., None], newline, x_RSD)
    x_RSD = jnp.where(is_here_RS[..., None], x_RSD, seen.x_RSD)
    placed = (
        sharding.constrain(x, model.rules, "batch", *[None] * (x.ndim - 1))
        for x in (x_RSD, seen.is_seen_RS | is_here_RS)
    )
    return SeenAt(*placed)
