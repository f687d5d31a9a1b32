"""Grouped matmul in NumPy, float64: one expert after the other."""

import numpy as np


def forward(x_RD, weights_EDF, group_sizes_E):
    """out (R, F), float64."""
    x_RD, weights_EDF = np.asarray(x_RD, np.float64), np.asarray(weights_EDF, np.float64)
    out_RF = np.zeros((x_RD.shape[0], weights_EDF.shape[2]))
    start = 0
    for expert, size in enumerate(np.asarray(group_sizes_E)):
        rows = slice(start, start + size)
        out_RF[rows] = x_RD[rows] @ weights_EDF[expert]
        start += size
    return out_RF


def backward(x_RD, weights_EDF, group_sizes_E, d_out_RF):
    """Gradients of x and weights, float64, for a given gradient of the output."""
    x_RD, weights_EDF, d_out_RF = (np.asarray(x, np.float64) for x in (x_RD, weights_EDF, d_out_RF))
    dx_RD, dw_EDF = np.zeros_like(x_RD), np.zeros_like(weights_EDF)
    start = 0
    for expert, size in enumerate(np.asarray(group_sizes_E)):
        rows = slice(start, start + size)
        dx_RD[rows] = d_out_RF[rows] @ weights_EDF[expert].T
        dw_EDF[expert] = x_RD[rows].T @ d_out_RF[rows]
        start += size
    return dx_RD, dw_EDF
