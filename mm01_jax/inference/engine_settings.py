"""What a request asks for as the arrays of a slot's row: how its tokens are drawn, and what ends it."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from mm01_jax.inference import sampling
from mm01_jax.inference.engine_programs import Slots
from mm01_jax.inference.engine_request import Request
from mm01_jax.inference.sampling import History


def row_of(row: Slots, empty: Slots, asked: Request, prompt: np.ndarray, put: Callable) -> Slots:
    """A row that draws its tokens so, with none drawn yet.

    Args:
      empty: that of no request. put: puts an array onto the devices (`Devices`), a small one once.
    """
    everywhere = functools.partial(_everywhere, put)
    settings = sampling.rows([asked.sampling], [asked.seed])
    if not asked.sampling.logit_bias:  # as in the row of no request
        settings = settings._replace(bias_id_BK=empty.rows.bias_id_BK, bias_BK=empty.rows.bias_BK)
    settings = jax.tree.map(lambda x: everywhere(x) if isinstance(x, np.ndarray) else x, settings)
    seen = np.zeros(empty.history.prompt_BV.shape, bool)
    seen[0, prompt] = True
    counts = {"place_B": asked.place, "number_B": 0, "left_B": asked.max_tokens}
    counts = {name: everywhere(np.full(1, value, np.int32)) for name, value in counts.items()}
    stops = np.full(row.stop_BK.shape, -1, np.int32)
    stops[0, : len(asked.stop_ids)] = asked.stop_ids
    tokens = np.full(row.tokens_BT.shape, -1, np.int32)
    known = np.concatenate([prompt, np.asarray(asked.expected, np.int32)])[: tokens.shape[1]]
    tokens[0, : len(known)] = known
    history = History(everywhere(seen), empty.history.count_BV)
    return row._replace(
        rows=settings, history=history, stop_BK=everywhere(stops), tokens_BT=everywhere(tokens), **counts
    )


def _everywhere(put: Callable, array: np.ndarray) -> jax.Array:
    return put(array, *[None] * array.ndim)
