"""Grouped matmul for TPUs: `jax.lax.ragged_dot`, which XLA lowers to its own Mosaic grouped matmul there."""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.precision import matmul_precision


def unsupported(x_RD, weights_EDF, group_sizes_E, capacity, multiple) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del x_RD, weights_EDF, group_sizes_E, capacity, multiple
    if dispatch.platform() != "tpu":
        return f"the code is for {dispatch.platform()}, not for a TPU"
    return None


def forward(x_RD, weights_EDF, group_sizes_E, capacity, multiple):
    """Contract in the package's docstring. Nothing is padded, so `capacity` bounds nothing here."""
    del capacity, multiple
    out_RF = jax.lax.ragged_dot(
        x_RD, weights_EDF, group_sizes_E, precision=matmul_precision(x_RD.dtype), preferred_element_type=jnp.float32
    )
    return out_RF.astype(x_RD.dtype)
