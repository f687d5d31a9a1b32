"""Attention of a chunk over a cache in NumPy, float64: one query after the other."""

import numpy as np


def attend(query_BSNH, keys, values, layer, first_B, count_B):
    """out (B, S, N, H), float64."""
    query, keys, values = (np.asarray(x, np.float64) for x in (query_BSNH, keys, values))
    B, S, N, H = query.shape
    group = N // keys.shape[2]
    out = np.zeros(query.shape)
    for b in range(B):
        for s in range(int(count_B[b])):
            end = int(first_B[b]) + s + 1
            for n in range(N):
                logits = keys[layer, b, n // group, :end] @ query[b, s, n] / np.sqrt(H)
                weights = np.exp(logits - logits.max())
                out[b, s, n] = weights @ values[layer, b, n // group, :end] / weights.sum()
    return out
