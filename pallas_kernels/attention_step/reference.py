"""A softmax layer's decode step in NumPy, float64, one row after the other."""

import numpy as np


def forward(projected_RF, angle_BA, keys_LBKTH, values_LBKTH, told, rounded=lambda x: x):
    """(out (B, W), the layer's keys (B, K, T, H), its values), float64.

    rounded: what the rotated heads go through, where they are judged as the cache has them.
    """
    position_B, active_B, layer = told
    keys, values = (np.array(x, np.float64)[int(layer[0])] for x in (keys_LBKTH, values_LBKTH))
    B, K, _, H = keys.shape
    outs = []
    for b, position in enumerate(np.asarray(position_B)):
        heads = np.asarray(projected_RF, np.float64)[b].reshape(-1, H)
        turned = rounded(_rotated(heads[:-K], np.asarray(angle_BA, np.float64)[b]))
        if active_B[b]:
            keys[b, :, position], values[b, :, position] = turned[-K:], heads[-K:]
        seen_keys, seen_values = keys[b, :, : position + 1], values[b, :, : position + 1]
        scores = np.einsum("kgh,kth->kgt", turned[:-K].reshape(K, -1, H), seen_keys) / np.sqrt(H)
        share = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out = np.einsum("kgt,kth->kgh", share / share.sum(axis=-1, keepdims=True), seen_values)
        outs.append(out.reshape(-1))
    return np.stack(outs), keys, values


def _rotated(heads_MH, angle_A):
    half, turned = len(angle_A), heads_MH.copy()
    pair = heads_MH[:, :half] + 1j * heads_MH[:, half : 2 * half]
    pair = pair * np.exp(1j * angle_A)
    turned[:, :half], turned[:, half : 2 * half] = pair.real, pair.imag
    return turned
