"""Softmax attention over `sequence` with keys and values passed around a ring (paper 4.2.1, "varlen ring attention").

Each shard keeps its queries; after n - 1 passes of keys, values and their positions and documents it has met all of
them, holding one shard's at a time. The gradient goes round once more with the same keys and values and collects
theirs on the way, so what is kept for it is the size of one shard.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from mm01_jax.config import SequenceLayout
from mm01_jax.parallel.sequence_layout import held
from mm01_jax.parallel.softmax.stripes import Keys, StripeTags, add_gradients, attend_visible, join, nothing_yet, split
from pallas_kernels.kept import MIXED, keep
from pallas_kernels.softmax_attention import delta, tied
from pallas_kernels.varying import vary_alike


def ring_attention(
    query_BSNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    tags_BS: tuple[jax.Array, jax.Array],
    axes: tuple[str, ...],
    layout: SequenceLayout,
) -> jax.Array:
    """Inside `shard_map`: attention of this shard's queries over the keys of all shards of `axes`; (B, S, N, H).

    A query sees the keys of its own document at positions up to its own, whatever shard holds them.
    """
    count = len(held(0, lax.axis_size(axes), layout))
    query, key, value, *tags = (split(x, count) for x in vary_alike(query_BSNH, key_BSKH, value_BSKH, *tags_BS))
    return join(_ring(axes, layout, query, Keys(key, value), tuple(tags)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ring(axes, layout, query, keys: Keys, tags):
    return _forward(axes, layout, query, keys, tags)[0]


def _forward(axes, layout, query, keys: Keys, untied):
    tags = tied(query, untied)
    place = functools.partial(_place, axes, layout)

    def step(carry, passes):
        keys, key_tags, so_far = carry
        arriving = _pass_on((keys, key_tags), axes)  # before the compute, which it can run beside
        so_far = attend_visible(query, StripeTags(*tags, place(0)), keys, StripeTags(*key_tags, place(passes)), so_far)
        return (*arriving, so_far), None

    last = lax.axis_size(axes) - 1
    start = (keys, tags, nothing_yet(query))
    (last_keys, key_tags, so_far), _ = lax.scan(step, start, jnp.arange(last, dtype=jnp.int32))
    out, lse = attend_visible(query, StripeTags(*tags, place(0)), last_keys, StripeTags(*key_tags, place(last)), so_far)
    out, lse = keep(out.astype(query.dtype), MIXED), keep(lse, MIXED)
    return out, (query, keys, untied, out, lse)


def _backward(axes, layout, residuals, d_out):
    query, keys, untied, out, lse = residuals
    tags = tied(query, untied)
    place = functools.partial(_place, axes, layout)
    whole = (d_out, lse, delta(d_out, out, lse))

    def step(carry, passes):
        keys, key_tags, (d_query, d_keys) = carry
        arriving = _pass_on((keys, key_tags), axes)
        tagged_keys = (keys, StripeTags(*key_tags, place(passes)))
        d_query, d_keys = add_gradients(query, StripeTags(*tags, place(0)), *tagged_keys, whole, (d_query, d_keys))
        return (*arriving, (d_query, _pass_on(d_keys, axes))), None

    last = lax.axis_size(axes) - 1
    zeros = functools.partial(jnp.zeros_like, dtype=lse.dtype)
    start = (keys, tags, (zeros(query), jax.tree.map(zeros, keys)))
    (last_keys, key_tags, sums), _ = lax.scan(step, start, jnp.arange(last, dtype=jnp.int32))
    tagged_keys = (last_keys, StripeTags(*key_tags, place(last)))
    d_query, d_keys = add_gradients(query, StripeTags(*tags, place(0)), *tagged_keys, whole, sums)
    d_keys = _pass_on(d_keys, axes)  # one pass more brings them home
    return d_query.astype(query.dtype), Keys(*(x.astype(keys.key.dtype) for x in d_keys)), None


_ring.defvjp(_forward, _backward)


def _place(axes, layout: SequenceLayout, passes) -> jax.Array:
    """(stripes,): where the stripes stand in the row that are here after so many passes."""
    size = lax.axis_size(axes)
    return jnp.stack(held((lax.axis_index(axes) - passes) % size, size, layout))


def _pass_on(x, axes):
    """Every shard's to the next."""
    size = lax.axis_size(axes)
    return lax.ppermute(x, axes, [(i, (i + 1) % size) for i in range(size)])
