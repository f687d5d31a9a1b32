"""One query token a row over the keys and values of a cache, the public operation (docs/model.md A.5).

    out = softmax(q K^T / sqrt(H)) V over the first `count` places

Letters: L layers, B rows, K key heads, G queries of a key head, T places, H head dim. Keys and values stay in their
stack of layers, and only the places that are filled are read. No gradient: it is for decoding.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch

OPERATION = dispatch.Operation(
    "attention_step", {name: f"pallas_kernels.attention_step.{name}" for name in ("gpu", "xla")}
)


def attention_step(
    query_BKGH: jax.Array,
    keys_LBKTH: jax.Array,
    values_LBKTH: jax.Array,
    count_B: jax.Array,
    layer: jax.Array,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """out (R, K * G * H) in the query's dtype, R = `few_rows.filled_up(B)`; rows that only fill up may be anything.

    Args:
      query_BKGH: bfloat16 or float32, rotated. keys_LBKTH, values_LBKTH: in its dtype. count_B: int32, from 1 to T.
      layer: int32 (1,), from 0 to L - 1.
      implementation: "gpu" (NVIDIA Hopper), "xla", or None for the first of these that can.

    Raises:
      ValueError: a shape or dtype is not as above.
      Unsupported: the named implementation cannot take these arguments on this device.
    """
    arguments = query_BKGH, keys_LBKTH, values_LBKTH, count_B, layer
    _check(*arguments)
    return OPERATION.module(dispatch.choose(OPERATION, implementation, *arguments)).forward(*arguments)


def _check(query, keys, values, count, layer) -> None:
    if query.ndim != 4 or 0 in query.shape or query.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"query must be (B, K, G, H) in bfloat16 or float32, got {_type(query)}")
    B, K, _, H = query.shape
    if keys.ndim != 5 or (*keys.shape[1:3], keys.shape[4]) != (B, K, H) or keys.dtype != query.dtype:
        raise ValueError(f"keys must be {query.dtype.name}[L, {B}, {K}, T, {H}] as the query, got {_type(keys)}")
    wanted = (values, keys.shape, keys.dtype), (count, (B,), jnp.int32), (layer, (1,), jnp.int32)
    for name, (array, shape, dtype) in zip(("values", "count", "layer"), wanted, strict=True):
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{name} must be {jnp.dtype(dtype).name}{list(shape)} as the keys, got {_type(array)}")


def _type(array) -> str:
    return f"{array.dtype.name}{list(array.shape)}"
