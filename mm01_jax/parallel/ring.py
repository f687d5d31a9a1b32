"""Softmax attention over `sequence` with keys and values passed around a ring (paper 4.2.1, "varlen ring attention").

Each shard keeps its queries; after n - 1 passes of keys, values and their positions and segments it has met all of
them, holding one shard's at a time. The gradient goes round once more with the same keys and values and collects
theirs on the way, so what is kept for it is the size of one shard.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.softmax_attention.partial import attend, attend_gradient, merge
from pallas_kernels.varying import vary_alike


def ring_attention(
    query_BSNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    positions_BS: jax.Array,
    segments_BS: jax.Array,
    axes: tuple[str, ...],
) -> jax.Array:
    """Inside `shard_map`: attention of this shard's queries over the keys of all shards of `axes`; (B, S, N, H).

    A query sees the keys of its own segment at positions up to its own, whatever shard holds them.
    """
    return _ring(axes, *vary_alike(query_BSNH, key_BSKH, value_BSKH, positions_BS, segments_BS))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(axes, query, key, value, positions, segments):
    return _forward(axes, query, key, value, positions, segments)[0]


def _forward(axes, query, key, value, positions, segments):
    index = _tied(query, positions, segments)

    def step(carry, _):
        (key, value, key_index), out, lse = carry
        arriving = _pass_on((key, value, key_index), axes)  # before the compute, which it can run beside
        out, lse = merge(out, lse, *attend(query, key, value, index, key_index))
        return (arriving, out, lse), None

    wide = np.promote_types(query.dtype, np.float32)
    nothing = (jnp.zeros_like(query, wide), jnp.full_like(query[..., 0], jnp.finfo(wide).min, wide))
    start = ((key, value, index), *nothing)
    (last, out, lse), _ = lax.scan(step, start, length=lax.axis_size(axes) - 1)
    out, lse = merge(out, lse, *attend(query, last[0], last[1], index, last[2]))
    out = out.astype(query.dtype)
    return out, (query, key, value, positions, segments, out, lse)


def _backward(axes, residuals, d_out):
    query, key, value, positions, segments, out, lse = residuals
    index = _tied(query, positions, segments)
    delta = jnp.sum(d_out.astype(lse.dtype) * out.astype(lse.dtype), axis=-1)

    def step(carry, _):
        here, d_here, d_query = carry
        arriving = _pass_on(here, axes)
        d_query, d_here = _add(query, here, index, (d_out, lse, delta), d_query, d_here)
        return (arriving, _pass_on(d_here, axes), d_query), None

    zeros = functools.partial(jnp.zeros_like, dtype=lse.dtype)
    start = ((key, value, index), (zeros(key), zeros(value)), zeros(query))
    (last, d_last, d_query), _ = lax.scan(step, start, length=lax.axis_size(axes) - 1)
    d_query, d_last = _add(query, last, index, (d_out, lse, delta), d_query, d_last)
    d_key, d_value = _pass_on(d_last, axes)  # one pass more brings them home
    return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype), None, None


_ring.defvjp(_forward, _backward)


def _tied(query, positions, segments):
    """The index, made to depend on the queries. Masks would else depend on nothing that differs between layers, and jax
    computes what a scan over layers has in common before it: every mask of every block and pass, 1.7 TiB at a million
    tokens on 512 chips.
    """
    return lax.optimization_barrier((query, positions, segments))[1:]


def _add(query, here, index, whole, d_query, d_here):
    key, value, key_index = here
    more_query, more_key, more_value = attend_gradient(query, key, value, index, key_index, whole)
    return d_query + more_query, (d_here[0] + more_key, d_here[1] + more_value)


def _pass_on(x, axes):
    """Every shard's to the next."""
    size = lax.axis_size(axes)
    return lax.ppermute(x, axes, [(i, (i + 1) % size) for i in range(size)])
