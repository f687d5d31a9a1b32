"""The end of lightning attention before its last product: y = sigmoid(gate) * weight * x / rms(x), each row by itself.

An implementation is a module with three functions; `api.py` has checked the arguments.

    unsupported(x_RW, gate_RW, weight_W) -> str | None                     why it cannot, or None
    forward(x_RW, gate_RW, weight_W, eps) -> y_RW                          in x's dtype
    backward(x_RW, gate_RW, weight_W, eps, dy_RW) -> dx, d gate, d weight  the last in float32
"""

from pallas_kernels.gated_norm.api import gated_norm

__all__ = ["gated_norm"]
