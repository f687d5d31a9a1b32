"""Softmax attention in NumPy, float64, the whole matrix at once: the oracle."""

import numpy as np


def attend(query_BSNH, key_BTKH, value_BTKH, query_tags, key_tags):
    """(out (B, S, N, H), logsumexp (B, S, N)), float64; a query that sees nothing has out 0 and logsumexp -inf."""
    query, key, value = _wide(query_BSNH, key_BTKH, value_BTKH)
    logits, _, value = _logits(query, key, value, query_tags, key_tags)
    with np.errstate(divide="ignore"):
        peak = np.maximum(logits.max(-1, keepdims=True), np.finfo(np.float64).min)
        lse = (peak + np.log(np.exp(logits - peak).sum(-1, keepdims=True)))[..., 0]
    return np.einsum("bnst,btnh->bsnh", _weights(logits, lse), value), np.moveaxis(lse, 1, 2)


def attend_gradient(query_BSNH, key_BTKH, value_BTKH, query_tags, key_tags, d_out_BSNH):
    """Gradients of query, key and value, float64, for a given gradient of `attend`'s out."""
    query, key, value, d_out = _wide(query_BSNH, key_BTKH, value_BTKH, d_out_BSNH)
    out, lse_BSN = attend(query, key, value, query_tags, key_tags)
    logits, wide_key, wide_value = _logits(query, key, value, query_tags, key_tags)
    weights, scale = _weights(logits, np.moveaxis(lse_BSN, 2, 1)), 1 / np.sqrt(query.shape[-1])
    d_weights = np.einsum("bsnh,btnh->bnst", d_out, wide_value)
    delta = np.moveaxis((d_out * out).sum(-1), 2, 1)[..., None]
    d_logits = weights * (d_weights - delta) * scale
    d_query = np.einsum("bnst,btnh->bsnh", d_logits, wide_key)
    d_key = np.einsum("bnst,bsnh->btnh", d_logits, query)
    d_value = np.einsum("bnst,bsnh->btnh", weights, d_out)
    B, T, K, H = key.shape
    return d_query, *(x.reshape(B, T, K, -1, H).sum(3) for x in (d_key, d_value))


def _wide(*arrays):
    return tuple(np.asarray(x, np.float64) for x in arrays)


def _logits(query, key, value, query_tags, key_tags):
    """(logits (B, N, S, T), -inf where hidden; key and value for every query head)."""
    (positions, documents), (key_positions, key_documents) = (map(np.asarray, tags) for tags in (query_tags, key_tags))
    same = (documents[:, :, None] == key_documents[:, None, :]) & (documents >= 0)[:, :, None]
    seen = same & (key_positions[:, None, :] <= positions[:, :, None])
    key, value = (np.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    logits = np.einsum("bsnh,btnh->bnst", query, key) / np.sqrt(query.shape[-1])
    return np.where(seen[:, None], logits, -np.inf), key, value


def _weights(logits, lse):
    return np.exp(logits - np.where(np.isfinite(lse), lse, 0)[..., None])
