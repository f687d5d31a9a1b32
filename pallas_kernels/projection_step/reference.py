"""The products of a decode step in NumPy, float64."""

import numpy as np


def forward(x_RD, matrices, layer):
    """y (R, sum of F), float64."""
    x_RD, *matrices = (np.asarray(array, np.float64) for array in (x_RD, *matrices))
    return np.concatenate([x_RD @ matrix[int(layer[0])] for matrix in matrices], axis=1)
