"""Softmax attention, the public operations: over all keys, and over a part of them.

    P = softmax(Q K' / sqrt(H) + mask)      O = P V

For keys that come one part at a time (a ring), with O_i and l_i the attention and the logsumexp over part i:

    l = log sum_i exp l_i        O = sum_i exp(l_i - l) O_i

A query sees the keys of its own document at positions up to its own; a negative document is padding: as a query it sees
nothing and outputs 0, as a key nothing sees it. Documents are ids that never come back in a row, as
`pallas_kernels/documents.py` makes them of whole rows: queries and keys may each be a part of one, and segment ids of a
part do not tell whether another document stood between.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import declared, dispatch
from pallas_kernels.kept import MIXED, keep
from pallas_kernels.softmax_attention.masking import Tags
from pallas_kernels.softmax_attention.whole import Whole
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
    query_tags: Tags,
    key_tags: Tags,
    implementation: str | None = None,
) -> jax.Array:
    """Attention of N query heads over K key/value heads; head n uses key head n // (N // K).

    Args:
      query_tags, key_tags: (positions, documents), int32 (B, S) and (B, T).
      implementation: "tpu", "gpu" (NVIDIA Hopper), "xla", or None for the first of these that can.

    Returns:
      (B, S, N, H) in the query's dtype. Differentiable in query, key and value.

    Raises:
      ValueError: a shape or dtype is not as above.
      Unsupported: the named implementation cannot take these arguments on this device.
    """
    name, arrays = _choose((query_BSNH, key_BTKH, value_BTKH, query_tags, key_tags), implementation)
    return _differentiable(name, *arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable(name, *arrays):
    return _forward(name, *arrays)[0]


def _forward(name, query, key, value, query_tags, key_tags):
    arrays = query, key, value, query_tags, key_tags
    with _causal(query, key):
        out, lse = OPERATION.module(name).attend(*arrays, query.dtype)
    # Named here: these are what the rule keeps, and a name behind the call would be of a copy.
    out, lse = keep(out, MIXED), keep(lse, MIXED)
    return out, (arrays, out, lse)


def _backward(name, residuals, d_out):
    arrays, out, lse = residuals
    with _causal(*arrays[:2]):
        gradients = OPERATION.module(name).attend_gradient(*arrays, (d_out, lse, out), out.dtype)
    return *gradients, None, None


_differentiable.defvjp(_forward, _backward)


def _causal(query, key):
    """As many queries as keys are a row: causality hides half of the pairs that a kernel declares."""
    return declared.percent(50 if query.shape[1] == key.shape[1] else 100)


def attend(
    query_BSNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    query_tags: Tags,
    key_tags: Tags,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(out (B, S, N, H), logsumexp (B, S, N)) over these keys, both float32; not differentiable.

    A query that sees none of these keys has out 0 and the smallest finite logsumexp.
    """
    name, arrays = _choose((query_BSNH, key_BTKH, value_BTKH, query_tags, key_tags), implementation)
    return OPERATION.module(name).attend(*arrays, _wide(query_BSNH))


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
    query_tags: Tags,
    key_tags: Tags,
    whole: Whole,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What these keys add to (d query, d key, d value), float32.

    Args:
      whole: d_out (B, S, N, H); logsumexp over all keys (B, S, N) float32; `delta` of the whole (B, S, N), or the
        whole's output (B, S, N, H).
    """
    name, arrays = _choose((query_BSNH, key_BTKH, value_BTKH, query_tags, key_tags, whole), implementation)
    return OPERATION.module(name).attend_gradient(*arrays, _wide(query_BSNH))


def passes_over_what_is_hidden(query_BSNH: jax.Array, key_BTKH: jax.Array, value_BTKH: jax.Array) -> bool:
    """Whether these get an implementation that reads no block which its tags hide from a block of queries, wherever in
    the arrays it stands. TPUs' kernel is one as well, and has not been timed so.
    """
    return dispatch.choose(OPERATION, None, query_BSNH, key_BTKH, value_BTKH) == "gpu"


def _choose(arrays, implementation: str | None):
    """(an implementation's name, the arrays, which inside `shard_map` vary over the same axes)."""
    _check(*arrays[:5])
    leaves, tree = jax.tree.flatten(arrays)
    arrays = jax.tree.unflatten(tree, vary_alike(*leaves))
    return dispatch.choose(OPERATION, implementation, *arrays[:3]), arrays


def _wide(x: jax.Array):
    return np.promote_types(x.dtype, np.float32)


def _check(query, key, value, query_tags, key_tags) -> None:
    (B, S, N, H), (K, T) = query.shape, (key.shape[2], key.shape[1])
    if key.shape != (B, T, K, H) or N % K or key.dtype != query.dtype:
        got = f"{key.dtype.name}{list(key.shape)}"
        raise ValueError(
            f"key must be (B={B}, T, K, H={H}) in {query.dtype.name}, K a divisor of the {N} query heads, got {got}"
        )
    if (value.shape, value.dtype) != (key.shape, key.dtype):
        got = f"{value.dtype.name}{list(value.shape)}"
        raise ValueError(f"value must be as key, {key.dtype.name}{list(key.shape)}, got {got}")
    for name, tags, shape in (("query_tags", query_tags, (B, S)), ("key_tags", key_tags, (B, T))):
        tag_types = [(x.shape, x.dtype.name) for x in tags]
        if tag_types != [(shape, "int32")] * 2:
            raise ValueError(f"{name} must be (positions, documents), int32{list(shape)} each, got {tag_types}")
