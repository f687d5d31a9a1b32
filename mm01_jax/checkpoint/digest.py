"""Digests of arrays: the same number on every mesh, computed where the data lives.

A chunk with elements b_0 b_1 ... (their bits as unsigned integers, row-major) has four 32-bit lanes

    lane_l = sum_i mix_l(b_i, i)  mod 2^32,        mix_l(b, i) = F_l(b xor (i G_l + S_l))

with F_l a bijection of 32-bit words (two odd multiplications, three xor-shifts, as in MurmurHash3's finaliser). A sum
mod 2^32 does not depend on order, so any split of a chunk over devices adds up to the same lanes exactly, which no
cryptographic hash offers. F_l is a bijection, so a change of any single element changes every lane; the term i G_l
makes the lanes see order. Against accidents this is a 128-bit check; against an adversary it promises nothing.

A leaf's SHA-256 covers its name, shape, dtype and its chunks' lanes in index order; a tree's covers its leaves.
"""

import functools
import hashlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np

LANES = 4
# Odd constants: two multipliers of F_l, the position stride G_l and the offset S_l of each lane.
_M1 = (0x85EBCA6B, 0x7FEB352D, 0x9E3779B1, 0x2C1B3C6D)
_M2 = (0xC2B2AE35, 0x846CA68B, 0x85EBCA77, 0x297A2D39)
_G = (0x9E3779B9, 0xBB67AE85, 0x3C6EF373, 0xA54FF53B)
_S = (0x243F6A89, 0x85A308D3, 0x13198A2F, 0x03707345)
_BLOCK_ELEMENTS = 1 << 24  # a NumPy chunk is hashed in blocks, so that a 5 GB embedding needs no second 5 GB


def partial_digest(x: jax.Array, starts: jax.Array, strides: tuple[int, ...], num_stack: int) -> jax.Array:
    """Lanes of the part of each chunk that one device holds.

    Args:
      x: the local shard, any 1-, 2- or 4-byte dtype; the leading `num_stack` axes are chunk indices.
      starts: uint32, where the shard begins along each of the other axes.
      strides: row-major strides of a whole chunk in elements, one per other axis.

    Returns:
      uint32 of shape x.shape[:num_stack] + (4,), to be added (mod 2^32) over the devices that share a chunk.
    """
    with jax.set_mesh(None):  # a mesh in context would refuse data that lies on one of its devices
        return _partial_digest(x, starts, strides=strides, num_stack=num_stack)


@functools.partial(jax.jit, static_argnames=("strides", "num_stack"))
def _partial_digest(x, starts, *, strides, num_stack):
    bits = _bits(x)
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, stride in enumerate(strides):
        along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, num_stack + axis) + starts[axis]
        index += along * np.uint32(stride % 2**32)
    axes = tuple(range(num_stack, x.ndim))
    # One reduction of four operands: XLA:CPU vectorises it, 2.0e9 elements/s on 2 cores against 0.17e9 with four sums.
    mixed = tuple(_mix(bits, index, lane) for lane in range(LANES))
    zeros = (np.uint32(0),) * LANES
    return jnp.stack(jax.lax.reduce(mixed, zeros, lambda a, b: tuple(map(jnp.add, a, b)), axes), axis=-1)


def _bits(x):
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    if x.dtype.itemsize > 4:
        raise ValueError(f"dtype={x.dtype} cannot be digested: allowed are dtypes of 1, 2 or 4 bytes")
    word = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)


def _mix(bits, index, lane):
    x = bits ^ (index * np.uint32(_G[lane]) + np.uint32(_S[lane]))
    x = (x ^ (x >> np.uint32(16))) * np.uint32(_M1[lane])
    x = (x ^ (x >> np.uint32(15))) * np.uint32(_M2[lane])
    return x ^ (x >> np.uint32(16))


def chunk_strides(shape: tuple[int, ...], num_stack: int) -> tuple[int, ...]:
    """Row-major strides, in elements, of one chunk of a leaf of this shape."""
    inner = shape[num_stack:]
    return tuple(math.prod(inner[axis + 1 :]) for axis in range(len(inner)))


def array_digest(array: jax.Array, num_stack: int) -> np.ndarray:
    """This process's part of the lanes of a (sharded) array: uint32 of shape stack axes + (4,).

    Every chunk element counts once: only replica 0 of each shard is read. Add the parts of all processes mod 2^32.
    """
    strides = chunk_strides(array.shape, num_stack)
    parts = []
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            index = tuple(s.indices(n)[:2] for s, n in zip(shard.index, array.shape, strict=True))
            starts = np.array([start for start, _ in index[num_stack:]], np.uint64).astype(np.uint32)
            stack = tuple(slice(*bounds) for bounds in index[:num_stack])
            parts.append((stack, partial_digest(shard.data, starts, strides, num_stack)))
    lanes = np.zeros(array.shape[:num_stack] + (LANES,), np.uint32)
    for stack, part in parts:  # fetched after all are dispatched, so that devices work side by side
        lanes[stack] += np.asarray(part)
    return lanes


def chunk_digest(chunk: np.ndarray) -> np.ndarray:
    """Lanes of one chunk held by NumPy: uint32 (4,), equal to `array_digest` of the same data on any mesh."""
    chunk = np.asarray(chunk)
    if chunk.size <= _BLOCK_ELEMENTS or chunk.ndim == 0:
        return np.asarray(_block_digest(chunk, 0, chunk.shape))
    rows = max(1, _BLOCK_ELEMENTS // math.prod(chunk.shape[1:]))
    lanes = np.zeros(LANES, np.uint32)
    for start in range(0, chunk.shape[0], rows):
        lanes += np.asarray(_block_digest(chunk[start : start + rows], start, chunk.shape))
    return lanes


def _block_digest(block, start, shape):
    starts = np.zeros(len(shape), np.uint32)
    if len(shape):
        starts[0] = start
    cpu = jax.local_devices(backend="cpu")[0]
    return partial_digest(jax.device_put(block, cpu), jax.device_put(starts, cpu), chunk_strides(shape, 0), 0)


def leaf_sha256(path: str, shape: tuple[int, ...], dtype: str, lanes: np.ndarray) -> str:
    """SHA-256 of a leaf: its name, shape and dtype, then the lanes of its chunks in index order."""
    header = json.dumps([path, list(shape), dtype, list(lanes.shape[:-1])]).encode()
    return hashlib.sha256(header + b"\n" + lanes.astype("<u4").tobytes()).hexdigest()


def tree_sha256(leaves: dict[str, str]) -> str:
    """SHA-256 of a tree: the (path, leaf digest) pairs in path order."""
    return hashlib.sha256(json.dumps(sorted(leaves.items())).encode()).hexdigest()
