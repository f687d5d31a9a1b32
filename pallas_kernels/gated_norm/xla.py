"""The gated norm as one expression over all rows. Runs everywhere."""

import jax.numpy as jnp

from pallas_kernels.gated_norm import rows


def unsupported(x_RW, gate_RW, weight_W) -> str | None:
    """Never: it runs everywhere."""
    del x_RW, gate_RW, weight_W


def forward(x_RW, gate_RW, weight_W, eps):
    """Contract in the package's docstring."""
    x, gate, weight = (a.astype(jnp.float32) for a in (x_RW, gate_RW, weight_W[None]))
    return rows.forward(x, gate, weight, eps).astype(x_RW.dtype)


def backward(x_RW, gate_RW, weight_W, eps, dy_RW):
    """Contract in the package's docstring."""
    x, gate, weight, dy = (a.astype(jnp.float32) for a in (x_RW, gate_RW, weight_W[None], dy_RW))
    dx, d_gate, d_weight = rows.backward(x, gate, weight, dy, eps)
    return dx.astype(x_RW.dtype), d_gate.astype(x_RW.dtype), jnp.sum(d_weight, axis=0)
