"""Softmax attention between stripes of a row; a pair of stripes that causality or documents hide is not computed.

Which pairs those are is known when the program runs, on each shard by itself: no collective waits for the answer.
The mask inside a pair is made of positions and documents, as everywhere; leaving a pair out only needs that the tokens
of a document stand in their order in the row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.softmax_attention import attend, attend_gradient, merge


class StripeTags(NamedTuple):
    """Where the tokens of stacked stripes stand. place: (stripes,) int32, in the row; the others (stripes, B, s)."""

    positions: jax.Array
    documents: jax.Array
    place: jax.Array


class Keys(NamedTuple):
    """Stacked stripes of keys and values (stripes, B, s, K, H)."""

    key: jax.Array
    value: jax.Array


def split(x: jax.Array, count: int) -> jax.Array:
    """(B, S, ...) -> (stripes, B, S / stripes, ...)."""
    B, S = x.shape[:2]
    return jnp.moveaxis(x.reshape(B, count, S // count, *x.shape[2:]), 1, 0)


def join(x: jax.Array) -> jax.Array:
    """The way back."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def pair_is_visible(query: StripeTags, key: StripeTags) -> jax.Array:
    """Whether a query of one stripe may see a key of another: it does not stand later, and the ids of their documents
    overlap in some row. Both without the stacking dim.
    """
    (first, last), (key_first, key_last) = _ids_of_rows(query.documents), _ids_of_rows(key.documents)
    return (key.place <= query.place) & jnp.any((key_first <= last) & (first <= key_last))


def _ids_of_rows(documents_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Smallest and largest document id of each row; an empty range where all is padding."""
    none = np.iinfo(np.int32).max
    return jnp.min(jnp.where(documents_BS >= 0, documents_BS, none), axis=1), jnp.max(documents_BS, axis=1)


def nothing_yet(query: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(out, logsumexp) of stacked queries that have seen no key."""
    wide = np.promote_types(query.dtype, np.float32)
    return jnp.zeros_like(query, wide), jnp.full_like(query[..., 0], jnp.finfo(wide).min, wide)


def attend_visible(query, tags: StripeTags, keys: Keys, key_tags: StripeTags, so_far):
    """(out, logsumexp) of all query stripes after these key stripes, given those before them."""

    def queries(_, stripe):
        query, tags, so_far = stripe

        def add(so_far, other):
            def see(so_far):
                return merge(*so_far, *attend(query, *keys, tags[:2], key_tags[:2]))

            keys, key_tags = other
            return lax.cond(pair_is_visible(tags, key_tags), see, lambda so_far: so_far, so_far), None

        return None, lax.scan(add, so_far, (keys, key_tags))[0]

    return lax.scan(queries, None, (query, tags, so_far))[1]


def add_gradients(query, tags: StripeTags, keys: Keys, key_tags: StripeTags, whole, sums):
    """(d query, d keys) with what these key stripes add to them.

    Args:
      whole: d out, logsumexp, sum over H of d out * out, of the query stripes (`attend_gradient`).
      sums: (d query, d keys) before.
    """

    def queries(d_keys, stripe):
        query, tags, whole, d_query = stripe

        def add(d_query, other):
            def see(sums):
                d_query, d_keys = sums
                more, *more_keys = attend_gradient(query, *keys, tags[:2], key_tags[:2], whole)
                return d_query + more, Keys(*map(jnp.add, d_keys, more_keys))

            keys, key_tags, d_keys = other
            return lax.cond(pair_is_visible(tags, key_tags), see, lambda sums: sums, (d_query, d_keys))

        d_query, d_keys = lax.scan(add, d_query, (keys, key_tags, d_keys))
        return d_keys, d_query

    d_query, d_keys = sums
    d_keys, d_query = lax.scan(queries, d_keys, (query, tags, whole, d_query))
    return d_query, d_keys
