"""One product a matrix. Runs everywhere."""

import jax
import jax.numpy as jnp

from pallas_kernels.precision import matmul_precision


def unsupported(x_RD, matrices, layer) -> str | None:
    """Never: it runs everywhere."""
    del x_RD, matrices, layer


def forward(x_RD, matrices, layer, dtype):
    """Contract in the package's docstring."""
    return jnp.concatenate([_product(x_RD, matrix, layer) for matrix in matrices], axis=1).astype(dtype)


def parts(x_RD, matrix_LDF, layer):
    """Contract in the package's docstring."""
    return _product(x_RD, matrix_LDF, layer)[None]


def _product(x_RD, matrix_LDF, layer):
    matrix_DF = jax.lax.dynamic_index_in_dim(matrix_LDF, layer[0], 0, keepdims=False)
    precision = matmul_precision(x_RD.dtype)
    return jnp.einsum("rd,df->rf", x_RD, matrix_DF, precision=precision, preferred_element_type=jnp.float32)
