"""Softmax attention over `sequence` with keys and values gathered, stripe by stripe as in the ring.

The gradient sends each shard the sum of what all of them have for its keys and values (a reduce-scatter).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mm01_jax.config import SequenceLayout
from mm01_jax.parallel.sequence_layout import held_here, stripes
from mm01_jax.parallel.softmax.stripes import Index, Keys, add_gradients, attend_visible, join, nothing_yet, split
from pallas_kernels.softmax_attention import delta, tied
from pallas_kernels.varying import vary_alike


class _Indices(NamedTuple):
    """Of the queries here and of the keys from everywhere."""

    own: Index
    all: Index


def gathered_attention(
    query_BSNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    index_BS: tuple[jax.Array, jax.Array],
    axes: tuple[str, ...],
    layout: SequenceLayout,
) -> jax.Array:
    """Inside `shard_map`: what `ring_attention` computes."""
    own, everywhere = jnp.stack(held_here(axes, layout)), stripes(lax.axis_size(axes), layout).reshape(-1)
    query, key, value, *index = (split(x, own.size) for x in vary_alike(query_BSNH, key_BSKH, value_BSKH, *index_BS))
    gather = functools.partial(lax.all_gather, axis_name=axes, axis=0, tiled=True)
    key, value, *key_index = map(gather, (key, value, *index))
    return join(
        _attention(query, Keys(key, value), _Indices(Index(*index, own), Index(*key_index, jnp.asarray(everywhere))))
    )


@jax.custom_vjp
def _attention(query, keys: Keys, indices: _Indices):
    return _forward(query, keys, indices)[0]


def _forward(query, keys: Keys, indices: _Indices):
    own, other = tied(query, indices)
    out, lse = attend_visible(query, own, keys, other, nothing_yet(query))
    out = out.astype(query.dtype)
    return out, (query, keys, indices, out, lse)


def _backward(residuals, d_out):
    query, keys, indices, out, lse = residuals
    whole = (d_out, lse, delta(d_out, out, lse))
    zeros = functools.partial(jnp.zeros_like, dtype=lse.dtype)
    own, other = tied(query, indices)
    d_query, d_keys = add_gradients(query, own, keys, other, whole, (zeros(query), jax.tree.map(zeros, keys)))
    return d_query.astype(query.dtype), Keys(*(x.astype(keys.key.dtype) for x in d_keys)), None


_attention.defvjp(_forward, _backward)
