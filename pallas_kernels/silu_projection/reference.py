"""A product and its SiLU in NumPy, float64."""

import numpy as np


def forward(x_RD, weight_DF):
    """y (R, F), float64."""
    product = np.asarray(x_RD, np.float64) @ np.asarray(weight_DF, np.float64)
    return product / (1.0 + np.exp(-product))
