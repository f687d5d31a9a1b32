"""Softmax attention, the public operations: over all keys, and over a part of them.

    P = softmax(Q K' / sqrt(H) + mask)      O = P V

For keys that come one part at a time (a ring), with O_i and l_i the attention and the logsumexp over part i:

    l = log sum_i exp l_i        O = sum_i exp(l_i - l) O_i

A query sees the keys of its own segment at positions up to its own; a negative segment is padding: as a query it sees
nothing and outputs 0, as a key nothing sees it.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.softmax_attention.masking import Index
from pallas_kernels.varying import vary_alike

OPERATION = dispatch.Operation(
    "softmax_attention",
    {name: f"pallas_kernels.softmax_attention.{name}" for name in ("tpu", "gpu", "xla")},
)


def softmax_attention(
    query_BSNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    *,
    query_index: Index,
    key_index: Index,
    implementation: str | None = None,
) -> jax.Array:
    """Attention of N query heads over K key/value heads; head n uses key head n // (N // K).

    Args:
      query_index, key_index: (positions, segments), int32 (B, S) and (B, T).
      implementation: "tpu", "gpu" (NVIDIA Hopper), "xla", or None for the first of these that can.

    Returns:
      (B, S, N, H) in the query's dtype. Differentiable in query, key and value.

    Raises:
      Unsupported: the named implementation cannot take these arguments on this device.
    """
    module, arrays = _choose((query_BSNH, key_BTKH, value_BTKH, query_index, key_index), implementation)
    return module.softmax_attention(*arrays)


def attend(
    query_BSNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    query_index: Index,
    key_index: Index,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(out (B, S, N, H), logsumexp (B, S, N)) over these keys, both float32; not differentiable.

    A query that sees none of these keys has out 0 and the smallest finite logsumexp.
    """
    module, arrays = _choose((query_BSNH, key_BTKH, value_BTKH, query_index, key_index), implementation)
    return module.attend(*arrays)


def merge(
    out_BSNH: jax.Array, lse_BSN: jax.Array, other_BSNH: jax.Array, other_lse_BSN: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Attention over the union of two disjoint parts of the keys."""
    lse = jnp.logaddexp(lse_BSN, other_lse_BSN)
    left, right = jnp.exp(lse_BSN - lse), jnp.exp(other_lse_BSN - lse)
    return out_BSNH * left[..., None] + other_BSNH * right[..., None], lse


def attend_gradient(
    query_BSNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    query_index: Index,
    key_index: Index,
    whole: tuple[jax.Array, jax.Array, jax.Array],
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What these keys add to (d query, d key, d value), float32.

    Args:
      whole: d_out (B, S, N, H); logsumexp over all keys (B, S, N); sum over H of d_out * out (B, S, N), float32.
    """
    module, arrays = _choose((query_BSNH, key_BTKH, value_BTKH, query_index, key_index, whole), implementation)
    return module.attend_gradient(*arrays)


def _choose(arrays, implementation: str | None):
    """(the implementation's module, the arrays, which inside `shard_map` vary over the same axes)."""
    leaves, tree = jax.tree.flatten(arrays)
    arrays = jax.tree.unflatten(tree, vary_alike(*leaves))
    return OPERATION.module(dispatch.choose(OPERATION, implementation, *arrays[:3])), arrays
