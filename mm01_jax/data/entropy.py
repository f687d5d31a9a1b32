"""How well counting alone predicts a text: empirical entropies of exactly the targets that an evaluation scores."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from mm01_jax.data.batch import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entropy:
    """Nats a target."""

    unigram: float  # H(x_t)
    bigram: float  # H(x_t | x_{t-1}): no model that sees one token back does better on these targets
    num_targets: int


def entropy(batches: Iterable[Batch]) -> Entropy:
    """Entropies of the targets of nonzero weight, with the statistics of these targets themselves."""
    pairs = []
    for batch in batches:
        chosen = batch.weights > 0
        pairs.append(batch.tokens[chosen].astype(np.int64) << 32 | batch.targets[chosen])
    joined = np.concatenate(pairs)
    if len(joined) == 0:
        raise ValueError("the batches have no target")
    joint = _entropy(joined)
    return Entropy(
        unigram=_entropy(joined & 0xFFFFFFFF), bigram=joint - _entropy(joined >> 32), num_targets=len(joined)
    )


def _entropy(values: np.ndarray) -> float:
    """float64 nats of the empirical distribution of int64 values."""
    share = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(share * np.log(share)).sum())
