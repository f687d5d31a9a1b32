"""An expert's SwiGLU over its own rows: y = W_down( w * silu(W_gate x) * W_up x ).

An implementation is a module with two functions; `api.py` has checked the arguments.

    unsupported(x_RD, weights, group_sizes_E, weight_R, capacity, multiple) -> str | None     why it cannot, or None
    forward(x_RD, weights, group_sizes_E, weight_R, capacity, multiple) -> y_RD     differentiable in all but the sizes
"""

from pallas_kernels.expert_ffn.api import expert_ffn

__all__ = ["expert_ffn"]
