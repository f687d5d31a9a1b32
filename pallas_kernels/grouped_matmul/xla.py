"""Grouped matmul as a padded batched matmul: rows gathered to (E, capacity, D), one einsum, rows gathered back.

Runs everywhere. On a GPU it is far faster than `jax.lax.ragged_dot`, which becomes a dense product over all experts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import dispatch
from pallas_kernels.int8 import Int8
from pallas_kernels.precision import matmul_precision


def unsupported(x_RD, weights_EDF, group_sizes_E, capacity, multiple) -> str | None:
    """Never: it runs everywhere."""
    del x_RD, weights_EDF, group_sizes_E, capacity, multiple


def forward(x_RD, weights_EDF, group_sizes_E, capacity, multiple):
    """Contract in the package's docstring. Rows of a group beyond `capacity` give 0."""
    del multiple
    places = _places(group_sizes_E, x_RD.shape[0], capacity)
    out_ECF = _multiply(_to_experts(x_RD, places), weights_EDF).astype(x_RD.dtype)
    return _to_rows(out_ECF, places)


class _Places(NamedTuple):
    """Where each slot's row is and where each row's slot is, int32; out of bounds where there is none."""

    row_EC: jax.Array
    expert_R: jax.Array
    slot_R: jax.Array


def _places(group_sizes_E, R: int, capacity: int) -> _Places:
    ends_E = jnp.cumsum(group_sizes_E, dtype=jnp.int32)
    starts_E = ends_E - group_sizes_E
    slot_C = jnp.arange(capacity, dtype=jnp.int32)
    row_EC = jnp.where(slot_C[None] < group_sizes_E[:, None], starts_E[:, None] + slot_C[None], R)
    row_R = jnp.arange(R, dtype=jnp.int32)
    expert_R = jnp.sum(row_R[:, None] >= ends_E[None], axis=1, dtype=jnp.int32)
    slot_R = row_R - starts_E.at[expert_R].get(mode="clip")
    return _Places(row_EC, jnp.where(slot_R < capacity, expert_R, group_sizes_E.shape[0]), slot_R)


# Each gather is the other's transpose. Said here, because the transpose that JAX derives of a gather is a scatter-add,
# and XLA on a GPU adds with atomics.
@jax.custom_vjp
def _to_experts(x_RD, places):
    return x_RD.at[places.row_EC].get(mode="fill", fill_value=0)


@jax.custom_vjp
def _to_rows(x_ECD, places):
    return x_ECD.at[places.expert_R, places.slot_R].get(mode="fill", fill_value=0)


_to_experts.defvjp(lambda x, places: (_to_experts(x, places), places), lambda p, d: (_to_rows(d, p), None))
_to_rows.defvjp(lambda x, places: (_to_rows(x, places), places), lambda p, d: (_to_experts(d, p), None))


def _multiply(x_ECD, weights_EDF):
    if not isinstance(weights_EDF, Int8):
        return _matmul(x_ECD, weights_EDF, x_ECD.dtype)
    wide = np.promote_types(x_ECD.dtype, np.float32)
    return _matmul(x_ECD, weights_EDF.values.astype(x_ECD.dtype), wide) * weights_EDF.scale[:, None].astype(wide)


def _matmul(x_ECD, weights_EDF, dtype):
    if dispatch.platform() == "cpu":
        # XLA:CPU has no bfloat16 x bfloat16 -> float32 for every layout; widened operands give the same exact products.
        x_ECD, weights_EDF = x_ECD.astype(jnp.float32), weights_EDF.astype(jnp.float32)
    precision = matmul_precision(x_ECD.dtype)
    # Asked for, not cast to: matrix units accumulate in float32 either way, and a cast afterwards would make the
    # backward's matmuls take float32 operands.
    return jnp.einsum("ecd,edf->ecf", x_ECD, weights_EDF, precision=precision, preferred_element_type=dtype)
