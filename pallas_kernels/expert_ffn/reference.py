"""SwiGLU of each row by its expert in NumPy, float64: one expert after the other."""

import numpy as np


def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def forward(x_RD, weights, group_sizes_E, weight_R):
    """y (R, D), float64."""
    x_RD, gate, up, down, weight_R = (np.asarray(x, np.float64) for x in (x_RD, *weights, weight_R))
    y_RD, start = np.zeros(x_RD.shape), 0
    for expert, size in enumerate(np.asarray(group_sizes_E)):
        rows = slice(start, start + size)
        g, u = x_RD[rows] @ gate[expert], x_RD[rows] @ up[expert]
        y_RD[rows] = (weight_R[rows, None] * g * _sigmoid(g) * u) @ down[expert]
        start += size
    return y_RD


def backward(x_RD, weights, group_sizes_E, weight_R, dy_RD):
    """Gradients of x, of the three matrices (a tuple) and of the rows' factors, float64."""
    x_RD, gate, up, down, weight_R, dy_RD = (np.asarray(x, np.float64) for x in (x_RD, *weights, weight_R, dy_RD))
    dx_RD, d_weight_R = np.zeros(x_RD.shape), np.zeros(weight_R.shape)
    d_matrices, start = tuple(np.zeros(x.shape) for x in (gate, up, down)), 0
    for expert, size in enumerate(np.asarray(group_sizes_E)):
        rows = slice(start, start + size)
        x, dy, w = x_RD[rows], dy_RD[rows], weight_R[rows, None]
        g, u, dh = x @ gate[expert], x @ up[expert], dy @ down[expert].T
        s = _sigmoid(g)
        d_weight_R[rows] = np.sum(dh * g * s * u, axis=1)
        dg, du = dh * w * u * (s + g * s * (1.0 - s)), dh * w * g * s
        dx_RD[rows] = dg @ gate[expert].T + du @ up[expert].T
        for total, gradient in zip(d_matrices, (x.T @ dg, x.T @ du, (w * g * s * u).T @ dy), strict=True):
            total[expert] = gradient
        start += size
    return dx_RD, d_matrices, d_weight_R
