"""Which stretch of a row each sequence shard holds; a row is cut into stripes of equal length.

    contiguous   n stripes,  shard i holds stripe i
    zigzag       2n stripes, shard i holds stripes i and 2n - 1 - i, the earlier first

Causality hides later keys from earlier queries. Of the stripe pairs in softmax attention the last contiguous shard has
n to do and the first one; every zigzag shard has 2n + 1 of its 4n. Lightning takes its prefix over the stripes.

A row is put into this order where a batch is placed on the devices (`data/pipeline.py`), after packing; positions,
segments, targets and weights go with the tokens. Calls with a cache (prefill, decode) are contiguous always.
"""

import math

import numpy as np
from jax import lax

from mm01_jax.config import MeshConfig, SequenceLayout


def held(shard, shards: int, layout: SequenceLayout) -> tuple:
    """The stripes that a shard holds, in the order it holds them; `shard` is a number or a traced one."""
    if shards == 1 or layout == "contiguous":
        return (shard,)
    return (shard, 2 * shards - 1 - shard)


def held_here(axes: tuple[str, ...], layout: SequenceLayout) -> tuple:
    """The same for this shard of `axes`, inside `shard_map`."""
    shards = math.prod(lax.axis_size(axis) for axis in axes)
    return held(lax.axis_index(axes) if shards > 1 else 0, shards, layout)


def stripes(shards: int, layout: SequenceLayout) -> np.ndarray:
    """(shards, stripes of a shard): which stripe each holds at each place."""
    return np.array([held(shard, shards, layout) for shard in range(shards)], np.int32)


def busiest(shards: int, layout: SequenceLayout) -> float:
    """Share of its stripe pairs that the busiest shard has to compute for one document as long as the row."""
    held_by = stripes(shards, layout)
    return float((held_by + 1).sum(axis=1).max() / (held_by.shape[1] * held_by.size))


def order(length: int, mesh: MeshConfig, layout: SequenceLayout) -> np.ndarray:
    """(length,): the position in the row of what stands at each place of the array; `np.argsort` of it is the way back.

    Raises:
      ValueError: the stripes do not divide the length.
    """
    held_by = stripes(mesh.shards("seq"), layout)
    if length % held_by.size:
        raise ValueError(f"rows of {length} tokens cannot be cut into {held_by.size} stripes ({layout})")
    return np.arange(length).reshape(held_by.size, -1)[held_by.reshape(-1)].reshape(-1)
