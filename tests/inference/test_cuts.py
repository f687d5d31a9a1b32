"""Laws of where a row's distribution is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm01_jax.inference import cuts, sampling

B, V = 64, 1000
SUM = V * 2.0**-24  # how far a sum of float32 numbers may be from its own, relative


@pytest.mark.parametrize("least_kept", (cuts.least_kept, sampling._least_of_sorted))
@pytest.mark.parametrize("decimals", (8, 1, 0))  # the fewer, the more are equal
def test_a_row_keeps_the_k_likeliest_and_of_those_the_fewest_that_hold_p(least_kept, decimals):
    random = np.random.default_rng(decimals)
    logits = np.round(random.normal(size=(B, V)) * random.choice([0.1, 2.0, 8.0], size=(B, 1)), decimals)
    logits = (logits - logits.max(axis=1, keepdims=True)).astype(np.float32)
    logits[: B // 2, random.permutation(V)[: V // 3]] = -np.inf
    k = random.choice([0, 1, 5, 100, V - 1, V, V + 7], size=B).astype(np.int32)
    p = random.choice([1e-9, 0.1, 0.5, 0.9, 0.999, 1.0], size=B).astype(np.float32)
    found = np.asarray(jax.jit(least_kept)(*map(jnp.asarray, (logits, k, p))))
    for row, count, share, least in zip(logits, k, p, found, strict=True):
        kth = np.sort(row)[::-1][min(count or V, V) - 1]
        assert least in row and least >= kth
        part = np.where(row >= kth, np.exp(row.astype(np.float64)), 0.0)
        if share == 1.0:
            assert least == kth
            continue
        assert part[row > least].sum() <= share * part.sum() * (1 + 2 * SUM)
        assert part[row >= least].sum() >= share * part.sum() * (1 - 2 * SUM)
