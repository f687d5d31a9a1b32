"""Rows moved by an index whose inverse is known, so that both directions are gathers.

JAX's transpose of a gather is a scatter-add, which a GPU does with atomics and a TPU nearly row by row.
"""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import dispatch

BLOCK = 256  # keys that are counted together


@jax.custom_vjp
def move_rows(x_ND: jax.Array, source_R: jax.Array, places_NA: jax.Array) -> jax.Array:
    """out[r] = x[source[r]], and zeros where source[r] >= N; (R, D) in x's dtype.

    Args:
      source_R: int32, >= 0.
      places_NA: int32, >= 0, every r with source[r] == n once; >= R where row n has fewer than A places.
    """
    return _gather(x_ND, source_R)


def _gather(x: jax.Array, index: jax.Array) -> jax.Array:
    """x[index] along the first dim, zeros where index is past its end; index (R,)."""
    if x.dtype.itemsize == 2 and x.shape[-1] % 2 == 0 and dispatch.platform() == "gpu":
        # In words of 32 bits: XLA's gather moves one element a thread, and so reaches 2.4 TB/s instead of 1.7 (H200).
        words = jax.lax.bitcast_convert_type(x.reshape(x.shape[0], -1, 2), jnp.uint32)
        return jax.lax.bitcast_convert_type(_take(words, index), x.dtype).reshape(-1, x.shape[-1])
    return _take(x, index)


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    return x.at[index].get(mode="fill", fill_value=0)


def _forward(x_ND, source_R, places_NA):
    return _gather(x_ND, source_R), places_NA


def _backward(places_NA, d_RD):
    return _gather_sum(d_RD, places_NA), None, None


move_rows.defvjp(_forward, _backward)


@jax.custom_vjp
def sum_rows(x_RD: jax.Array, places_NA: jax.Array, source_R: jax.Array) -> jax.Array:
    """out[n] = sum over a of x[places[n, a]], the transpose of `move_rows`; (N, D), in float32 before x's dtype."""
    return _gather_sum(x_RD, places_NA)


sum_rows.defvjp(
    lambda x_RD, places_NA, source_R: (_gather_sum(x_RD, places_NA), source_R),
    lambda source_R, d_ND: (_gather(d_ND, source_R), None, None),
)


def _gather_sum(x_RD: jax.Array, places_NA: jax.Array) -> jax.Array:
    wide = np.promote_types(x_RD.dtype, np.float32)
    return jnp.sum(_take(x_RD, places_NA), axis=1, dtype=wide).astype(x_RD.dtype)


def permutation_by(key: jax.Array, num_keys: int) -> tuple[jax.Array, jax.Array]:
    """(order, place) of a stable ascending sort of int32 keys (n,): key[order] is sorted, place[order[i]] = i.

    A counting sort: how many equal keys come before, and how many smaller ones there are. Keys are in [0, num_keys).
    """
    blocks = jnp.pad(key, (0, -key.size % BLOCK), constant_values=num_keys).reshape(-1, BLOCK)  # padding counts nowhere
    is_key_GCK = jax.nn.one_hot(blocks, num_keys, dtype=jnp.bfloat16)
    # Sums of at most BLOCK ones, exact in bfloat16, as a product: a matrix unit adds them up in one pass.
    earlier_CC = jnp.tri(BLOCK, k=-1, dtype=jnp.bfloat16)
    before_GCK = jnp.einsum("cb,gbk->gck", earlier_CC, is_key_GCK, preferred_element_type=jnp.float32)
    counts_GK = jnp.sum(is_key_GCK, axis=1, dtype=jnp.float32).astype(jnp.int32)
    total_K = jnp.sum(counts_GK, axis=0)
    first_GK = jnp.cumsum(counts_GK, axis=0) - counts_GK + (jnp.cumsum(total_K) - total_K)[None, :]
    place_GCK = before_GCK.astype(jnp.int32) + first_GK[:, None, :]
    place = jnp.sum(jnp.where(is_key_GCK > 0, place_GCK, 0), axis=-1).reshape(-1)[: key.size]
    index = jnp.arange(key.size, dtype=jnp.int32) + 0 * key
    if dispatch.platform() == "tpu":  # which scatters nearly element by element
        # lax.sort, not argsort: argsort's indices are typed as equal on all devices inside a checked shard_map, and
        # gathers through them get wrong gradients (jax 0.10 to 0.12).
        return jax.lax.sort((place, index), num_keys=1)[1], place
    return jnp.zeros_like(index).at[place].set(index, unique_indices=True, mode="promise_in_bounds"), place


def in_block(index: jax.Array, starts: jax.Array, ends: jax.Array, values: jax.Array, outside: int) -> jax.Array:
    """values[b] of the block [starts[b], ends[b]) that holds each index, `outside` where none does.

    Args:
      index: (..., n). starts, ends, values: (..., b), blocks disjoint, b small: every index is compared with all.
    """
    inside = (starts[..., None, :] <= index[..., :, None]) & (index[..., :, None] < ends[..., None, :])
    value = jnp.sum(jnp.where(inside, values[..., None, :], 0), axis=-1, dtype=jnp.int32)
    return jnp.where(jnp.any(inside, axis=-1), value, outside)
