"""Grouped matmul for TPUs: `jax.lax.ragged_dot`, which XLA lowers to its own Mosaic grouped matmul there.

It takes no int8, so that matrices are widened in memory before it: five times their bytes go to and fro. Where groups
have few rows XLA's padded form is asked instead, into whose products it fuses the widening.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.grouped_matmul import xla
from pallas_kernels.int8 import Int8
from pallas_kernels.precision import matmul_precision

FEW = 256  # rows of a group at most: their products take less time than reading their matrix as int8


def unsupported(x_RD, weights_EDF, group_sizes_E, capacity, multiple) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del x_RD, weights_EDF, group_sizes_E, capacity, multiple
    if dispatch.platform() != "tpu":
        return f"the code is for {dispatch.platform()}, not for a TPU"
    return None


def forward(x_RD, weights_EDF, group_sizes_E, capacity, multiple):
    """Contract in the package's docstring. But for int8 nothing is padded, so `capacity` bounds nothing here."""
    if isinstance(weights_EDF, Int8) and capacity <= FEW:
        return xla.forward(x_RD, weights_EDF, group_sizes_E, capacity, multiple)
    matrices = weights_EDF.values.astype(x_RD.dtype) if isinstance(weights_EDF, Int8) else weights_EDF
    out_RF = jax.lax.ragged_dot(
        x_RD, matrices, group_sizes_E, precision=matmul_precision(x_RD.dtype), preferred_element_type=jnp.float32
    )
    if isinstance(weights_EDF, Int8):
        ends_E = jnp.cumsum(group_sizes_E, dtype=jnp.int32)
        expert_R = jnp.sum(jnp.arange(x_RD.shape[0])[:, None] >= ends_E[None], axis=1, dtype=jnp.int32)
        out_RF = out_RF * weights_EDF.scale.at[expert_R].get(mode="clip")  # rows after the last group are 0
    return out_RF.astype(x_RD.dtype)
