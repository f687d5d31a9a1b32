"""Attention of one token a row in NumPy, float64, one row after the other."""

import numpy as np


def forward(query_BKGH, keys_LBKTH, values_LBKTH, count_B, layer):
    """out (B, K, G, H), float64."""
    query, keys, values = (np.asarray(x, np.float64) for x in (query_BKGH, keys_LBKTH, values_LBKTH))
    out = np.zeros(query.shape)
    for b, count in enumerate(np.asarray(count_B)):
        seen_keys, seen_values = (x[int(layer[0]), b, :, :count] for x in (keys, values))
        scores = np.einsum("kgh,kth->kgt", query[b], seen_keys) / np.sqrt(query.shape[-1])
        share = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out[b] = np.einsum("kgt,kth->kgh", share / share.sum(axis=-1, keepdims=True), seen_values)
    return out
