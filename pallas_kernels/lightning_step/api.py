"""A lightning layer's decode step from its projections to its norm, the public operation (docs/model.md A.4).

    q, k, v = silu(.)    S <- exp(-slope) S + k v^T    o = S^T q    u = sigmoid(gate) * weight * o

What is left of y = W_out (u / rms(o)) is a product and one factor a row, which commute.
Letters: B rows, R them filled up, N heads, H head dim, W = N H, L layers, F = 4 N H. No gradient: it is for decoding.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.few_rows import filled_up

OPERATION = dispatch.Operation(
    "lightning_step", {name: f"pallas_kernels.lightning_step.{name}" for name in ("tpu", "gpu", "xla")}
)


@jax.named_scope("lightning_step")
def lightning_step(
    projected_RF: jax.Array,
    state_LBNHH: jax.Array,
    slope_LN: jax.Array,
    weight_LNH: jax.Array,
    active_B: jax.Array,
    layer: jax.Array,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(o (R, W), u (R, W), the states). Donate the states to update them in place.

    Args:
      projected_RF: bfloat16 or float32: of each head q, k and v before their SiLU, then the gates of all heads.
      state_LBNHH: float32 (L, B, N, H key, H value). slope_LN: float32. weight_LNH: the norm's, in projected's dtype.
      active_B: bool; an inactive row keeps its state and gives 0. layer: int32 (1,).
      implementation: "tpu", "gpu" (NVIDIA Hopper), "xla", or None for the first of these that can.

    Raises:
      ValueError: a shape or dtype is not as above.
      Unsupported: the named implementation cannot take these arguments on this device.
    """
    arguments = projected_RF, state_LBNHH, slope_LN, weight_LNH, active_B, layer
    _check(*arguments)
    return OPERATION.module(dispatch.choose(OPERATION, implementation, *arguments)).forward(*arguments)


def _check(projected, state, slope, weight, active, layer) -> None:
    if state.ndim != 5 or state.dtype != jnp.float32 or state.shape[3] != state.shape[4]:
        raise ValueError(f"state must be float32 (L, B, N, H, H), got {_type(state)}")
    L, B, N, H, _ = state.shape
    if projected.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"projected must be bfloat16 or float32, got {projected.dtype.name}")
    wanted = (
        ("projected", projected, (filled_up(B), 4 * N * H), projected.dtype),
        ("slope", slope, (L, N), jnp.float32),
        ("weight", weight, (L, N, H), projected.dtype),
        ("active", active, (B,), jnp.bool_),
        ("layer", layer, (1,), jnp.int32),
    )
    for name, array, shape, dtype in wanted:
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{name} must be {jnp.dtype(dtype).name}{list(shape)} as the state, got {_type(array)}")


def _type(array) -> str:
    return f"{array.dtype.name}{list(array.shape)}"
