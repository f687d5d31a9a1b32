"""What a layer is told about its tokens beside their activations."""

from typing import NamedTuple

import jax

from mm01_jax.config import SequenceLayout


class Tokens(NamedTuple):
    """The tokens of one call, and the one value that differs from layer to layer.

    slope_N: (N,) float32, the layer's decay slopes. positions_BS: (B, S) int32, in the document; with a cache the slot.
    documents_BS: (B, S) int32 document ids, counting up along the row; < 0 is padding. layout: which stretches of a
    row a sequence shard holds, the same for every layer (`TextModel.forward` decides it). start_B: (B,) int32, with a
    cache, the slot of a row's first token; 0 but in `deterministic.py`.
    """

    slope_N: jax.Array | None
    positions_BS: jax.Array
    documents_BS: jax.Array
    layout: SequenceLayout
    start_B: jax.Array | None = None
