"""A lightning layer's decode step in NumPy, float64, one head of one row after the other."""

import numpy as np


def forward(projected_RF, state_LBNHH, slope_LN, weight_LNH, active_B, layer, rounded=lambda x: x):
    """(o (B, W), u (B, W), the layer's states (B, N, H, H)), float64.

    rounded: what q, k and v go through, where they are judged as prefill would have them.
    """
    states = np.array(state_LBNHH, np.float64)[int(layer[0])]
    projected, slope, weight = (np.asarray(x, np.float64) for x in (projected_RF, slope_LN, weight_LNH))
    B, N, H, _ = states.shape
    o, u = np.zeros((B, N, H)), np.zeros((B, N, H))
    for b in np.flatnonzero(np.asarray(active_B)):
        for n in range(N):
            qkv = projected[b, n * 3 * H : (n + 1) * 3 * H]
            q, k, v = np.split(rounded(qkv / (1.0 + np.exp(-qkv))), 3)
            gate = projected[b, 3 * N * H + n * H :][:H]
            states[b, n] = np.exp(-slope[int(layer[0]), n]) * states[b, n] + np.outer(k, v)
            o[b, n] = states[b, n].T @ q
            u[b, n] = weight[int(layer[0]), n] * o[b, n] / (1.0 + np.exp(-gate))
    return o.reshape(B, -1), u.reshape(B, -1), states
