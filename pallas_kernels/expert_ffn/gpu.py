"""Experts for NVIDIA Hopper (Pallas Mosaic GPU), bfloat16: `gpu_up`, and the grouped products' kernels.

    forward     hidden = w silu(x G) (x U)      y = hidden D
    backward    dh = dy D'      dG, dU, hidden, dw from dh, x G, x U in one pass      dx = dG G' + dU U' in one product

What is kept for the backward pass is x G and x U. With the row's factor inside, nothing of it needs y: where the
forward pass is computed again for its gradient, the last product is not.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.expert_ffn import gpu_up
from pallas_kernels.grouped_matmul import gpu as grouped
from pallas_kernels.grouped_matmul import gpu_int8, gpu_rows, gpu_tiles, gpu_weights
from pallas_kernels.int8 import Int8, shape_of
from pallas_kernels.kept import EXPANDED, keep


def unsupported(x_RD, weights, group_sizes_E, weight_R, capacity, multiple) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del weight_R
    return grouped.unsupported(x_RD, weights[0], group_sizes_E, capacity, multiple)


def forward(x_RD, weights, group_sizes_E, weight_R, capacity, multiple):
    """Contract in the package's docstring. Nothing is padded, so `capacity` bounds nothing here."""
    del capacity, multiple
    if isinstance(weights[0], Int8):
        return _plain(x_RD, weights, weight_R, gpu_tiles.experts_of_tiles(group_sizes_E, x_RD.shape[0]))
    return _ffn(x_RD, weights, group_sizes_E, weight_R)


def forward_in_stack(x_RD, weights, group_sizes_E, weight_R, layer):
    """`forward` by the experts of a layer, whose matrices (L, E, ...) are read where they lie; no gradient."""
    E = shape_of(weights[0])[1]
    gate, up, down = jax.tree.map(lambda w: w.reshape(-1, *w.shape[2:]), weights)
    experts = gpu_tiles.experts_of_tiles(group_sizes_E, x_RD.shape[0])
    return _plain(x_RD, (gate, up, down), weight_R, jnp.where(experts < E, layer * E + experts, shape_of(gate)[0]))


def _plain(x_RD, weights, weight_R, experts):
    """Without a gradient: matrices of either kind, those that the tiles of rows meet given by number."""
    gate, up, down = weights
    if isinstance(gate, Int8):
        hidden = gpu_int8.gated(x_RD, gate, up, weight_R, experts)
        return gpu_int8.multiply(hidden, down, experts)
    (hidden,) = gpu_up.gated(x_RD, gate, up, weight_R, experts, keeps=False)
    return gpu_rows.multiply(hidden, down, experts, transposed=False)


@jax.custom_vjp
def _ffn(x_RD, weights, group_sizes_E, weight_R):
    return _plain(x_RD, weights, weight_R, gpu_tiles.experts_of_tiles(group_sizes_E, x_RD.shape[0]))


def _forward(x_RD, weights, group_sizes_E, weight_R):
    gate, up, down = weights
    experts = gpu_tiles.experts_of_tiles(group_sizes_E, x_RD.shape[0])
    hidden, *products = gpu_up.gated(x_RD, gate, up, weight_R, experts, keeps=True)
    products = [keep(x, EXPANDED) for x in products]
    y_RD = gpu_rows.multiply(hidden, down, experts, transposed=False)
    return y_RD, (x_RD, weights, group_sizes_E, weight_R, products)


def _backward(residuals, dy_RD):
    x_RD, (gate, up, down), group_sizes_E, weight_R, products = residuals
    experts = gpu_tiles.experts_of_tiles(group_sizes_E, x_RD.shape[0])
    dh_RF = gpu_rows.multiply(dy_RD, down, experts, transposed=True)
    (d_gate, d_up, hidden), d_weight_R = _swiglu_gradient(dh_RF, *products, weight_R)
    dx_RD = gpu_rows.multiply_sum([(d_gate, gate), (d_up, up)], experts, transposed=True)
    pairs = (x_RD, d_gate), (x_RD, d_up), (hidden, dy_RD)
    return dx_RD, tuple(gpu_weights.outer(*pair, group_sizes_E) for pair in pairs), None, d_weight_R


_ffn.defvjp(_forward, _backward)


def _swiglu_gradient(dh_RF, gate_RF, up_RF, weight_R):
    """((d gate, d up, hidden) (R, F) in dh's dtype, d weight (R,)), all of one pass, in float32."""
    dh, gate, up = (x.astype(jnp.float32) for x in (dh_RF, gate_RF, up_RF))
    open_ = jax.nn.sigmoid(gate)
    silu = gate * open_
    weight = jnp.ones((), jnp.float32) if weight_R is None else weight_R[:, None]
    d_weight = None if weight_R is None else jnp.sum(dh * silu * up, axis=1)
    d_gate = weight * dh * up * open_ * (1.0 + gate * (1.0 - open_))
    outs = d_gate, weight * dh * silu, weight * silu * up
    return tuple(x.astype(dh_RF.dtype) for x in outs), d_weight
