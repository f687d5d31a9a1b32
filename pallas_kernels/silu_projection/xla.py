"""The product, rounded, then its SiLU. Runs everywhere."""

import jax
import jax.numpy as jnp

from pallas_kernels.precision import matmul_precision


def unsupported(x_RD, weight_DF) -> str | None:
    """Never: it runs everywhere."""
    del x_RD, weight_DF


def forward(x_RD, weight_DF):
    """Contract in the package's docstring."""
    precision = matmul_precision(x_RD.dtype)
    return jax.nn.silu(jnp.dot(x_RD, weight_DF, precision=precision, preferred_element_type=x_RD.dtype))
