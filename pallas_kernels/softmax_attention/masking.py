"""Which keys a query sees, from positions and segments; and queries cut into blocks."""

import jax
import jax.numpy as jnp


def visible(query_index: tuple[jax.Array, jax.Array], key_index: tuple[jax.Array, jax.Array]) -> jax.Array:
    """(B, S, T) bool: keys of the query's own segment at positions up to its own; nothing for padding (< 0)."""
    positions, segments = query_index
    key_positions, key_segments = key_index
    same = (segments[:, :, None] == key_segments[:, None, :]) & (segments >= 0)[:, :, None]
    return same & (key_positions[:, None, :] <= positions[:, :, None])


def split_queries(arrays: tuple[jax.Array, ...], block: int) -> tuple[jax.Array, ...]:
    """(B, S, ...) -> (blocks, B, block, ...) each; the last block is filled with -1, padding to a segment."""
    B, S = arrays[0].shape[:2]
    size = min(block, S)
    blocks = -(-S // size)

    def split(x: jax.Array) -> jax.Array:
        padding = [(0, 0), (0, blocks * size - S)] + [(0, 0)] * (x.ndim - 2)
        padded = jnp.pad(x, padding, constant_values=-1)
        return jnp.moveaxis(padded.reshape(B, blocks, size, *x.shape[2:]), 1, 0)

    return tuple(map(split, arrays))
