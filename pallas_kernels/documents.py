"""What a document is: the one definition, which everything that keeps documents apart is made from.

A row is cut into documents by the segment ids of its tokens. A negative id is padding. A token begins a document if its
id differs from that of the last token before it that is not padding. So a document is a stretch of tokens of one id, as
long as it can be; padding inside does not end it, and where an id comes back after another one, it names another
document. The row's first document begins nowhere: it goes on with what came before the row (a state, a cache).

    segments    . 7 7 . 7 3 7 7 .        . is padding
    begins            .   x x
    documents   . 0 0 . 0 1 2 2 .

Document ids count the documents of a row from 0, so none comes back: "the same document" is then "equal ids", also
where only a part of the row is at hand. docs/documents.md names every place that relies on it.
"""

import jax
import jax.numpy as jnp

PADDING = -1  # the document id of padding; among segment ids every negative number is padding


def begins(segments_BS: jax.Array) -> jax.Array:
    """(B, S) bool: the token begins a document, int32 segment ids of whole rows in their order."""
    valid_BS = segments_BS >= 0
    index_BS = jnp.arange(segments_BS.shape[1], dtype=jnp.int32)[None]
    last_valid_BS = jax.lax.cummax(jnp.where(valid_BS, index_BS, -1), axis=1)
    before_BS = jnp.concatenate([jnp.full_like(last_valid_BS[:, :1], -1), last_valid_BS[:, :-1]], axis=1)
    segment_before_BS = jnp.take_along_axis(segments_BS, jnp.maximum(before_BS, 0), axis=1)
    return valid_BS & (before_BS >= 0) & (segments_BS != segment_before_BS)


def document_ids(segments_BS: jax.Array) -> jax.Array:
    """int32 (B, S): document ids of whole rows in their order; PADDING for padding."""
    documents_BS = jnp.cumsum(begins(segments_BS), axis=1, dtype=jnp.int32)
    return jnp.where(segments_BS >= 0, documents_BS, PADDING)
