"""Documents (`pallas_kernels/documents.py`) and padding of a packed sequence, counted so that every decay has an
exponent <= 0.

A token's *age* is the number of tokens up to and with it that are not padding: padding makes nothing older, so the
decay from token j to token i is exp(-slope * (age_i - age_j)). The incoming state has age 0. A token reads what is at
least as old as the first token of its document, `first`; the first document of a row continues the incoming state, so
its `first` is 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.documents import begins


class Documents(NamedTuple):
    """Per token, int32 (B, S). Padding carries the last token's age and first; `valid` is False there."""

    age: jax.Array
    first: jax.Array
    valid: jax.Array


def documents(segment_ids_BS: jax.Array) -> Documents:
    """Ages and document starts from segment ids."""
    valid_BS = segment_ids_BS >= 0
    age_BS = jnp.cumsum(valid_BS, axis=1, dtype=jnp.int32)
    first_BS = jax.lax.cummax(jnp.where(begins(segment_ids_BS), age_BS, 0), axis=1)
    return Documents(age_BS, first_BS, valid_BS)


def filled_documents(segment_ids_BS: jax.Array | None, S: int, chunk: int) -> Documents:
    """`documents`, with padding up to a multiple of the chunk; None is one document, told for one row."""
    missing = -S % chunk
    if segment_ids_BS is not None:
        return documents(jnp.pad(segment_ids_BS, ((0, 0), (0, missing)), constant_values=-1))
    # Not the cumulative sum of a constant: XLA folds it when it compiles, and complains of how long that takes.
    index = jnp.arange(S + missing, dtype=jnp.int32)[None]
    return Documents(jnp.minimum(index + 1, S), jnp.zeros_like(index), index < S)


def before_chunks(documents: Documents, chunk: int) -> jax.Array:
    """Age of the state that enters each chunk, int32 (B, ceil(S / chunk)): the age at the end of the chunk before."""
    ends = documents.age[:, chunk - 1 :: chunk]
    number = -(-documents.age.shape[1] // chunk)
    return jnp.concatenate([jnp.zeros_like(documents.age[:, :1]), ends], axis=1)[:, :number]


ROWS = 8  # a TPU register has eight rows; the last three of `chunk_rows` are unused


def chunk_rows(tokens: Documents, chunk: int) -> jax.Array:
    """What a kernel needs of each token, relative to its chunk: float32 (B, ROWS, S), S a multiple of `chunk`.

    Ages are counted from the incoming state of the chunk, so all numbers are small and exact. Rows:
      0 age of a key, -1 for padding                1 `first` of a query, at least 0, beyond every age for padding
      2 distance from the incoming state to here    3 distance from here to the chunk's end
      4 distance from the incoming state to the chunk's end, the same for all tokens of the chunk
    A distance is -1 where nothing is carried: another document, or padding. Otherwise it is >= 0.
    """
    before_BS = jnp.repeat(before_chunks(tokens, chunk), chunk, axis=1)
    after_BS = jnp.repeat(tokens.age[:, chunk - 1 :: chunk], chunk, axis=1)
    first_after_BS = jnp.repeat(tokens.first[:, chunk - 1 :: chunk], chunk, axis=1)
    rows = [
        jnp.where(tokens.valid, tokens.age - before_BS, -1),
        jnp.where(tokens.valid, jnp.maximum(tokens.first - before_BS, 0), chunk + 1),
        jnp.where(tokens.valid & (tokens.first <= before_BS), tokens.age - before_BS, -1),
        jnp.where(tokens.valid & (tokens.age >= first_after_BS), after_BS - tokens.age, -1),
        jnp.where(first_after_BS <= before_BS, after_BS - before_BS, -1),
    ]
    rows += [jnp.zeros_like(rows[0])] * (ROWS - len(rows))
    return jnp.stack(rows, axis=1).astype(jnp.float32)
