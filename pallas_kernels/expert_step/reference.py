"""Experts of a decode step in NumPy, float64: one row and one choice after the other."""

import numpy as np


def forward(x_RD, choice_AR, weight_AR, matrices, layer):
    """y (R, D), float64."""
    x_RD, weight_AR, *matrices = (np.asarray(array, np.float64) for array in (x_RD, weight_AR, *matrices))
    gate, up, down = (matrix[int(layer[0])] for matrix in matrices)
    y_RD = np.zeros(x_RD.shape)
    for r, choices in enumerate(np.asarray(choice_AR).T):
        for a, e in enumerate(choices):
            if e < len(gate):
                gated = x_RD[r] @ gate[e]
                y_RD[r] += (weight_AR[a, r] * gated / (1.0 + np.exp(-gated)) * (x_RD[r] @ up[e])) @ down[e]
    return y_RD
