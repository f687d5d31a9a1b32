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
from mm01_jax.parallel.softmax.stripes import Keys, StripeTags, add_gradients, attend_visible, join, nothing_yet, split
from pallas_kernels.kept import MIXED, keep
from pallas_kernels.softmax_attention import delta, tied
from pallas_kernels.varying import vary_alike


class _Tags(NamedTuple):
    """Of the queries here and of the keys from everywhere."""

    own: StripeTags
    all: StripeTags


def gathered_attention(
    query_BSNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    tags_BS: tuple[jax.Array, jax.Array],
    axes: tuple[str, ...],
    layout: SequenceLayout,
) -> jax.Array:
    """Inside `shard_map`: what `ring_attention` computes."""
    own, everywhere = jnp.stack(held_here(axes, layout)), stripes(lax.axis_size(axes), layout).reshape(-1)
    query, key, value, *tags = (split(x, own.size) for x in vary_alike(query_BSNH, key_BSKH, value_BSKH, *tags_BS))
    gather = functools.partial(lax.all_gather, axis_name=axes, axis=0, tiled=True)
    key, value, *key_tags = map(gather, (key, value, *tags))
    all_tags = StripeTags(*key_tags, jnp.asarray(everywhere))
    return join(_attention(query, Keys(key, value), _Tags(StripeTags(*tags, own), all_tags)))


@jax.custom_vjp
def _attention(query, keys: Keys, tags: _Tags):
    return _forward(query, keys, tags)[0]


def _forward(query, keys: Keys, tags: _Tags):
    own, other = tied(query, tags)
    out, lse = attend_visible(query, own, keys, other, nothing_yet(query))
    out, lse = keep(out.astype(query.dtype), MIXED), keep(lse, MIXED)
    return out, (query, keys, tags, out, lse)


def _backward(residuals, d_out):
    query, keys, tags, out, lse = residuals
    whole = (d_out, lse, delta(d_out, out, lse))
    zeros = functools.partial(jnp.zeros_like, dtype=lse.dtype)
    own, other = tied(query, tags)
    d_query, d_keys = add_gradients(query, own, keys, other, whole, (zeros(query), jax.tree.map(zeros, keys)))
    return d_query.astype(query.dtype), Keys(*(x.astype(keys.key.dtype) for x in d_keys)), None


_attention.defvjp(_forward, _backward)
