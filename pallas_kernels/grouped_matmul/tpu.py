"""Grouped matmul for TPUs: `jax.lax.ragged_dot`, which XLA lowers to its own Mosaic grouped matmul there."""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.int8 import Int8
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
    matrices = weights_EDF.values.astype(x_RD.dtype) if isinstance(weights_EDF, Int8) else weights_EDF
    out_RF = jax.lax.ragged_dot(
        x_RD, matrices, group_sizes_E, precision=matmul_precision(x_RD.dtype), preferred_element_type=jnp.float32
    )
    if isinstance(weights_EDF, Int8):
        ends_E = jnp.cumsum(group_sizes_E, dtype=jnp.int32)
        expert_R = jnp.sum(jnp.arange(x_RD.shape[0])[:, None] >= ends_E[None], axis=1, dtype=jnp.int32)
        out_RF = out_RF * weights_EDF.scale.at[expert_R].get(mode="clip")  # rows after the last group are 0
    return out_RF.astype(x_RD.dtype)
