"""A softmax layer's decode step from its projections to its last product, the public operation (docs/model.md A.5).

    q, k rotated; k, v put into the cache at `position`; out = softmax(q K^T / sqrt(H)) V over the places up to it

Letters: L layers, B rows, R them filled up, K key heads, G queries of a key head, T places, H head dim, A angles,
F = (K G + 2 K) H, W = K G H. Keys and values stay in their stack of layers, and only the places that are filled are
read. No gradient: it is for decoding.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.few_rows import filled_up

OPERATION = dispatch.Operation(
    "attention_step", {name: f"pallas_kernels.attention_step.{name}" for name in ("tpu", "gpu", "xla")}
)


@jax.named_scope("attention_step")
def attention_step(
    projected_RF: jax.Array,
    angle_BA: jax.Array,
    keys_LBKTH: jax.Array,
    values_LBKTH: jax.Array,
    told: tuple[jax.Array, jax.Array, jax.Array],
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(out (R, W) in projected's dtype, keys, values). Donate keys and values to write them in place.

    Args:
      projected_RF: bfloat16 or float32: the heads of q, of k, of v. Rows that only fill up may be anything, here and in
        the result.
      angle_BA: float32; number i of a head turns with number i + A by angle i, the rest stays.
      keys_LBKTH, values_LBKTH: in projected's dtype.
      told: position_B int32, from 0 to T - 1; active_B bool, rows that are not write nothing and may get anything;
        layer int32 (1,), from 0 to L - 1.
      implementation: "tpu", "gpu" (NVIDIA Hopper), "xla", or None for the first of these that can.

    Raises:
      ValueError: a shape or dtype is not as above.
      Unsupported: the named implementation cannot take these arguments on this device.
    """
    arguments = projected_RF, angle_BA, keys_LBKTH, values_LBKTH, told
    _check(*arguments)
    return OPERATION.module(dispatch.choose(OPERATION, implementation, *arguments)).forward(*arguments)


def _check(projected, angle, keys, values, told) -> None:
    position, active, layer = told
    if projected.ndim != 2 or projected.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"projected must be (R, F) in bfloat16 or float32, got {_type(projected)}")
    if keys.ndim != 5 or keys.dtype != projected.dtype:
        raise ValueError(f"keys must be (L, B, K, T, H) in {projected.dtype.name} as projected, got {_type(keys)}")
    (_, B, K, _, H), F = keys.shape, projected.shape[1]
    if projected.shape[0] != filled_up(B) or F % (K * H) or F < 3 * K * H:
        raise ValueError(f"projected must be ({filled_up(B)}, (G + 2) * {K * H}) as the keys, got {_type(projected)}")
    if angle.ndim != 2 or angle.shape[0] != B or 2 * angle.shape[1] > H or angle.dtype != jnp.float32:
        raise ValueError(f"angle must be float32[{B}, A up to {H // 2}], got {_type(angle)}")
    wanted = (
        ("values", values, keys.shape, keys.dtype),
        ("position", position, (B,), jnp.int32),
        ("active", active, (B,), jnp.bool_),
        ("layer", layer, (1,), jnp.int32),
    )
    for name, array, shape, dtype in wanted:
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{name} must be {jnp.dtype(dtype).name}{list(shape)} as the keys, got {_type(array)}")


def _type(array) -> str:
    return f"{array.dtype.name}{list(array.shape)}"
