"""Softmax attention over `sequence` with keys and values gathered: stripe by stripe as in the ring, or in one call
where the kernel itself passes over what its tags hide.

The gradient sends each shard the sum of what all of them have for its keys and values (a reduce-scatter).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mm01_jax.config import SequenceLayout
from mm01_jax.parallel import collectives
from mm01_jax.parallel.sequence_layout import held_here, stripes
from mm01_jax.parallel.softmax.stripes import Keys, StripeTags, add_gradients, attend_visible, join, nothing_yet, split
from pallas_kernels.kept import MIXED, keep
from pallas_kernels.softmax_attention import delta, passes_over_what_is_hidden, softmax_attention, tied
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
    if passes_over_what_is_hidden(query_BSNH, key_BSKH, value_BSKH):
        return _at_once(query_BSNH, (key_BSKH, value_BSKH, *tags_BS), axes, layout)
    own, everywhere = jnp.stack(held_here(axes, layout)), stripes(lax.axis_size(axes), layout).reshape(-1)
    query, key, value, *tags = (split(x, own.size) for x in vary_alike(query_BSNH, key_BSKH, value_BSKH, *tags_BS))
    gather = functools.partial(collectives.all_gather, axis_name=axes, axis=0, tiled=True)
    key, value, *key_tags = map(gather, (key, value, *tags))
    all_tags = StripeTags(*key_tags, jnp.asarray(everywhere))
    return join(_attention(query, Keys(key, value), _Tags(StripeTags(*tags, own), all_tags)))


def _at_once(query_BSNH: jax.Array, keys_BS: tuple[jax.Array, ...], axes: tuple[str, ...], layout: SequenceLayout):
    """One call for all stripes here: nothing to merge, sums of gradients inside the kernels.

    keys_BS: keys, values and the tags of both sides, of this shard.
    """
    held = stripes(lax.axis_size(axes), layout)
    in_row = [int(place) for place in np.argsort(held.reshape(-1))]

    def whole(x):
        """Of the whole row, in its order: a block of queries then reads one stretch of keys."""
        parts = collectives.all_gather(split(x, held.shape[1]), axes, axis=0, tiled=True)
        parts = lax.split(parts, (1,) * held.size)
        return join(lax.concatenate([parts[place] for place in in_row], 0))

    query_BSNH, *keys_BS = vary_alike(query_BSNH, *keys_BS)
    key, value, *key_tags = map(whole, keys_BS)
    return softmax_attention(query_BSNH, key, value, query_tags=tuple(keys_BS[2:]), key_tags=tuple(key_tags))


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
