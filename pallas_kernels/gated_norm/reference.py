"""The gated norm in NumPy, float64."""

import numpy as np


def forward(x_RW, gate_RW, weight_W, eps):
    """y (R, W), float64."""
    x, gate, weight = (np.asarray(a, np.float64) for a in (x_RW, gate_RW, weight_W))
    return x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + eps) * weight / (1.0 + np.exp(-gate))


def backward(x_RW, gate_RW, weight_W, eps, dy_RW):
    """Gradients of x, gate and weight, float64, by the chain rule, one quotient after the other."""
    x, gate, weight, dy = (np.asarray(a, np.float64) for a in (x_RW, gate_RW, weight_W, dy_RW))
    rms = np.sqrt(np.mean(x * x, axis=1, keepdims=True) + eps)
    opened = 1.0 / (1.0 + np.exp(-gate))
    d_normed = dy * weight * opened
    d_rms = -np.sum(d_normed * x, axis=1, keepdims=True) / rms**2
    dx = d_normed / rms + d_rms * x / (x.shape[1] * rms)
    return dx, dy * weight * x / rms * np.exp(-gate) * opened**2, np.sum(dy * opened * x / rms, axis=0)
