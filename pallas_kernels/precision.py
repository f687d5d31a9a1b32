"""The precision of matrix products, by the dtype of what is multiplied."""

import jax
import jax.numpy as jnp


def matmul_precision(dtype: jax.typing.DTypeLike) -> jax.lax.Precision:
    """The highest for float32, whose products a TPU or GPU would else round to fewer bits. Products of bfloat16 are
    exact in float32 as they are.
    """
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT
