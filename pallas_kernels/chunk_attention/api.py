"""Attention of a chunk over a cache, the public operation: query s of a row sees the keys at places up to first + s.

    O[s] = sum_t P[s, t] V[t]      P[s] = softmax over t <= first + s of (Q[s] K[t]' / sqrt(H))

Letters: L layers in the cache, B rows, S queries of a row, N query heads, K key heads, T places of a row, H head dim.
No more of the cache is read than a tile of queries sees, and none of it is copied or turned.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.varying import vary_alike

OPERATION = dispatch.Operation(
    "chunk_attention", {name: f"pallas_kernels.chunk_attention.{name}" for name in ("gpu", "xla")}
)


def chunk_attention(
    query_BSNH: jax.Array,
    keys_LBKTH: jax.Array,
    values_LBKTH: jax.Array,
    layer: jax.Array,
    first_B: jax.Array,
    count_B: jax.Array,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """(B, S, N, H) in the query's dtype; not differentiable. Head n sees key head n // (N // K).

    Args:
      keys_LBKTH, values_LBKTH: the cache, this chunk's keys and values written. layer: int32 scalar, whose turn it is.
      first_B: int32, the place of each row's first query. count_B: int32, its queries; those after them give 0.
      implementation: "gpu" (NVIDIA Hopper), "xla" (where a TPU's kernel takes the layer's keys, copied), or None for
        the first of these that can.

    Raises:
      ValueError: a shape or dtype is not as above.
      Unsupported: the named implementation cannot take these arguments on this device.
    """
    _check(query_BSNH, keys_LBKTH, values_LBKTH, first_B, count_B)
    arrays = vary_alike(query_BSNH, keys_LBKTH, values_LBKTH, layer, first_B, count_B)
    name = dispatch.choose(OPERATION, implementation, *arrays[:2])
    return OPERATION.module(name).attend(*arrays)


def _check(query, keys, values, first, count) -> None:
    B, _, N, H = query.shape
    if keys.ndim != 5 or keys.shape[1] != B or keys.shape[4] != H or N % keys.shape[2] or keys.dtype != query.dtype:
        got = f"{keys.dtype.name}{list(keys.shape)}"
        raise ValueError(
            f"keys must be (L, B={B}, K, T, H={H}) in {query.dtype.name}, K a divisor of the {N} query heads, got {got}"
        )
    if (values.shape, values.dtype) != (keys.shape, keys.dtype):
        raise ValueError(f"values must be as keys, {list(keys.shape)}, got {values.dtype.name}{list(values.shape)}")
    for name, array in (("first_B", first), ("count_B", count)):
        if array.shape != (B,) or array.dtype != jnp.int32:
            raise ValueError(f"{name} must be int32[{B}], got {array.dtype.name}{list(array.shape)}")
