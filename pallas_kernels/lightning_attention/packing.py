"""Documents and padding of a packed sequence, counted so that every decay has an exponent <= 0.

A token's *age* is the number of tokens up to and with it that are not padding: padding makes nothing older, so the
decay from token j to token i is exp(-slope * (age_i - age_j)). The incoming state has age 0. A token reads what is at
least as old as the first token of its document, `first`; the first document of a row continues the incoming state, so
its `first` is 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NEVER = jnp.iinfo(jnp.int32).max  # `first` of a padding token: it reads nothing


class Documents(NamedTuple):
    """Per token, int32 (B, S). Padding carries the last token's age and first; `valid` is False there."""

    age: jax.Array
    first: jax.Array
    valid: jax.Array

    def key_age(self) -> jax.Array:
        """`age`, and -1 where nothing is written."""
        return jnp.where(self.valid, self.age, -1)

    def query_first(self) -> jax.Array:
        """`first`, and NEVER where nothing is read."""
        return jnp.where(self.valid, self.first, NEVER)


def documents(segment_ids_BS: jax.Array) -> Documents:
    """Ages and document starts from segment ids: a change of id starts a document, a negative id is padding."""
    valid_BS = segment_ids_BS >= 0
    age_BS = jnp.cumsum(valid_BS, axis=1, dtype=jnp.int32)
    index_BS = jnp.arange(segment_ids_BS.shape[1], dtype=jnp.int32)[None]
    last_valid_BS = jax.lax.cummax(jnp.where(valid_BS, index_BS, -1), axis=1)
    before_BS = jnp.concatenate([jnp.full_like(last_valid_BS[:, :1], -1), last_valid_BS[:, :-1]], axis=1)
    id_before_BS = jnp.take_along_axis(segment_ids_BS, jnp.maximum(before_BS, 0), axis=1)
    starts_BS = valid_BS & (before_BS >= 0) & (segment_ids_BS != id_before_BS)
    first_BS = jax.lax.cummax(jnp.where(starts_BS, age_BS, 0), axis=1)
    return Documents(age_BS, first_BS, valid_BS)


def before_chunks(documents: Documents, chunk: int) -> jax.Array:
    """Age of the state that enters each chunk, int32 (B, ceil(S / chunk)): the age at the end of the chunk before."""
    ends = documents.age[:, chunk - 1 :: chunk]
    number = -(-documents.age.shape[1] // chunk)
    return jnp.concatenate([jnp.zeros_like(documents.age[:, :1]), ends], axis=1)[:, :number]
