"""All experts for all rows, of which those that a row did not choose count 0. Runs everywhere."""

import jax
import jax.numpy as jnp

from pallas_kernels.int8 import Int8, dequantized
from pallas_kernels.precision import matmul_precision


def unsupported(x_RD, choice_AC, weight_AC, matrices, layer, rows) -> str | None:
    """Never: it runs everywhere."""
    del x_RD, choice_AC, weight_AC, matrices, layer, rows


def forward(x_RD, choice_AC, weight_AC, matrices, layer, rows):
    """Contract in the package's docstring."""
    matrices = jax.tree.map(lambda array: jax.lax.dynamic_index_in_dim(array, layer[0], 0, keepdims=False), matrices)
    gate, up, down = (dequantized(w, (-2,), x_RD.dtype) if isinstance(w, Int8) else w for w in matrices)
    E, R = gate.shape[0], x_RD.shape[0]
    is_of = choice_AC[:, :rows, None] == jnp.arange(E, dtype=jnp.int32)[None, None, :]
    weight_RE = jnp.where(is_of, weight_AC[:, :rows, None], 0.0).sum(0)
    x_RD = x_RD[:rows]
    precision = matmul_precision(x_RD.dtype)
    gated, upward = (jnp.einsum("rd,edf->erf", x_RD, matrix, precision=precision) for matrix in (gate, up))
    hidden = jax.nn.silu(gated) * upward
    hidden = (hidden.astype(jnp.float32) * weight_RE.T[:, :, None]).astype(x_RD.dtype)
    y = jnp.einsum("erf,efd->rd", hidden, down, precision=precision, preferred_element_type=jnp.float32)
    return jnp.pad(y, ((0, R - rows), (0, 0)))[None]
