"""Document ids on a mesh: segment ids of whole rows, cut over `sequence` in either layout, to ids that never come back.

Each stripe counts the documents that begin inside it. The first and last segment of every stripe, in the order of the
row, are a short row of their own: where a document begins in it at a stripe's first segment, one begins at the stripe's
edge. Three numbers a stripe are gathered, once a forward pass.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mm01_jax import sharding
from mm01_jax.config import Rules, SequenceLayout
from mm01_jax.parallel import collectives
from mm01_jax.parallel.sequence_layout import held_here, stripes
from pallas_kernels import documents


def document_ids(segments_BS: jax.Array, *, rules: Rules, layout: SequenceLayout = "contiguous") -> jax.Array:
    """int32 segment ids (B, S), rows in `layout` -> int32 document ids (B, S) (`pallas_kernels/documents.py`)."""
    if segments_BS.shape[1] == 1:  # decode: a row's one token belongs to its first document
        return jnp.where(segments_BS >= 0, jnp.zeros_like(segments_BS), documents.PADDING)
    rows = sharding.spec(rules, "batch", "seq")
    local = functools.partial(_local, axes=rules.seq, layout=layout)
    return jax.shard_map(local, in_specs=rows, out_specs=rows)(segments_BS)


def _local(segments_BS: jax.Array, *, axes: tuple[str, ...], layout: SequenceLayout) -> jax.Array:
    """One device's share; with one sequence shard the definition alone."""
    shards = int(np.prod([lax.axis_size(axis) for axis in axes]))
    if shards == 1:
        return documents.document_ids(segments_BS)
    B, S = segments_BS.shape
    held_by = stripes(shards, layout)
    # Stripes are rows from here on: (B, S) is (B * here, S / here), which moves nothing.
    segments_BS = segments_BS.reshape(B * held_by.shape[1], -1)
    inside_BS = documents.document_ids(segments_BS)
    first_B, last_B = _first_segment(segments_BS), _first_segment(segments_BS[:, ::-1])
    ends_3BP = jnp.stack([first_B, last_B, jnp.max(inside_BS, axis=1)]).reshape(3, B, -1)
    before_BP = _before(collectives.all_gather(ends_3BP, axes), held_by)[:, jnp.stack(held_here(axes, layout))]
    ids_BS = jnp.where(segments_BS >= 0, inside_BS + before_BP.reshape(-1, 1), documents.PADDING)
    return ids_BS.reshape(B, S)


def _first_segment(segments_BS: jax.Array) -> jax.Array:
    """Segment id of each row's first token that is not padding; of the first token if all are."""
    index_B = jnp.argmax(segments_BS >= 0, axis=1)
    return jnp.take_along_axis(segments_BS, index_B[:, None], axis=1)[:, 0]


def _before(ends: jax.Array, held_by: np.ndarray) -> jax.Array:
    """(B, P): documents that begin before each stripe's first token or with it, of P stripes in the row's order.

    Args:
      ends: (shards, 3, B, stripes of a shard): first and last segment, and the documents that begin inside.
    """
    ends_P3B = jnp.moveaxis(ends, 3, 1).reshape(-1, *ends.shape[1:3])[np.argsort(held_by.reshape(-1))]
    first_BP, last_BP, inside_BP = jnp.moveaxis(ends_P3B, 0, 2)
    inside_BP = jnp.maximum(inside_BP, 0)
    edges_BP = jnp.stack([first_BP, last_BP], axis=2).reshape(first_BP.shape[0], -1)
    at_edge_BP = documents.begins(edges_BP)[:, ::2].astype(jnp.int32)
    return jnp.cumsum(at_edge_BP + inside_BP, axis=1) - inside_BP
