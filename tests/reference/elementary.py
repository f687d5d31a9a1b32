"""The elementary functions of the model, analytic in their argument.

    rms_norm(x; g, eps) = g * x / sqrt(mean(x^2) + eps)
    silu(x) = x * sigmoid(x)
    softmax(x)_i = e^{x_i} / sum_j e^{x_j}

No absolute value, conjugate or comparison touches an imaginary part: that is what makes a complex step exact.
"""

import numpy as np


def rms_norm(x, gain, eps: float):
    return gain * x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)


def sigmoid(x):
    # e^{-|x|}, never e^{|x|}: a complex overflow is nan, not inf.
    shrinking = np.exp(np.where(x.real > 0, -x, x))
    return np.where(x.real > 0, 1.0, shrinking) / (1.0 + shrinking)


def silu(x):
    return x * sigmoid(x)


def log_sum_exp(x):
    """log sum_j e^{x_j} over the last axis, which is kept."""
    largest = np.max(x.real, axis=-1, keepdims=True)
    return largest + np.log(np.sum(np.exp(x - largest), axis=-1, keepdims=True))


def softmax(x):
    return np.exp(x - log_sum_exp(x))
