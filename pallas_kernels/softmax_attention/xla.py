"""Softmax attention in plain XLA, a block of queries at a time: logits are float32 and exist for one block only.

P = exp(Q K' - lse)     dV = P' dO     dS = P * (dO V' - sum_h dO O)     dQ = dS K     dK = dS' Q
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import dispatch
from pallas_kernels.precision import matmul_precision
from pallas_kernels.softmax_attention.masking import Tags, split_queries, tied, visible
from pallas_kernels.softmax_attention.whole import Whole, with_delta

QUERY_BLOCK = 512


def unsupported(query_BSNH, key_BTKH, value_BTKH) -> str | None:
    """Never: it runs everywhere."""
    del query_BSNH, key_BTKH, value_BTKH


def attend(query_BSNH, key_BTKH, value_BTKH, query_tags: Tags, key_tags: Tags, dtype):
    """Contract in the package's docstring."""
    B, S, N, H = query_BSNH.shape
    query_tags = tied(query_BSNH, query_tags)
    whole = _grouped(query_BSNH, key_BTKH), *query_tags
    block = functools.partial(_attend_block, key_BTKH, value_BTKH, key_tags)
    if S <= QUERY_BLOCK:  # decode: no loop around one block, nor its buffers
        out, lse = block(whole)
    else:
        out, lse = (_joined(x, S) for x in jax.lax.map(block, split_queries(whole, QUERY_BLOCK)))
    return out.reshape(B, S, N, H).astype(dtype), lse.reshape(B, S, N)


def attend_gradient(query_BSNH, key_BTKH, value_BTKH, query_tags: Tags, key_tags: Tags, whole: Whole, dtype):
    """Contract in the package's docstring."""
    B, S, N, H = query_BSNH.shape
    query_tags = tied(query_BSNH, query_tags)
    grouped = functools.partial(_grouped, key_BTKH=key_BTKH)
    d_out, lse, delta = with_delta(whole)
    wide = lse.dtype
    d_out, lse, delta = grouped(d_out), grouped(lse[..., None]), grouped(delta[..., None])
    blocks = split_queries((grouped(query_BSNH), *query_tags, d_out, lse[..., 0], delta[..., 0]), QUERY_BLOCK)
    start = jax.tree.map(lambda x: jnp.zeros_like(x, wide), (key_BTKH, value_BTKH))
    body = functools.partial(_gradient_block, key_BTKH, value_BTKH, key_tags)
    (d_key, d_value), d_query = jax.lax.scan(body, start, blocks)
    d_query = _joined(d_query, S).reshape(B, S, N, H)
    return tuple(x.astype(dtype) for x in (d_query, d_key, d_value))


def _grouped(x_BSNH: jax.Array, key_BTKH: jax.Array) -> jax.Array:
    """(B, S, N, ...) -> (B, S, K, N / K, ...)."""
    B, S, N = x_BSNH.shape[:3]
    K = key_BTKH.shape[2]
    return x_BSNH.reshape(B, S, K, N // K, *x_BSNH.shape[3:])


def _joined(blocks: jax.Array, S: int) -> jax.Array:
    """(blocks, B, block, ...) -> (B, S, ...)."""
    joined = jnp.moveaxis(blocks, 0, 1)
    return joined.reshape(joined.shape[0], -1, *joined.shape[3:])[:, :S]


def _einsum(like: jax.Array):
    wide = np.promote_types(like.dtype, np.float32)
    einsum = functools.partial(jnp.einsum, precision=matmul_precision(like.dtype), preferred_element_type=wide)
    if dispatch.platform() == "cpu":
        # XLA:CPU has no bfloat16 x bfloat16 -> float32 for every layout (one query of eight heads a key head, say);
        # widened operands give the same exact products.
        return lambda equation, *operands: einsum(equation, *(x.astype(wide) for x in operands))
    return einsum


def _logits(query_BSKGH, key_BTKH, query_tags, key_tags):
    """(logits (B, K, G, S, T) float32, mask (B, 1, 1, S, T))."""
    scale = 1.0 / math.sqrt(query_BSKGH.shape[-1])
    logits = _einsum(query_BSKGH)("bskgh,btkh->bkgst", query_BSKGH, key_BTKH) * scale
    return logits, visible(query_tags, key_tags)[:, None, None]


def _attend_block(key_BTKH, value_BTKH, key_tags, block):
    query, positions, documents = block
    logits, mask = _logits(query, key_BTKH, (positions, documents), key_tags)
    least = jnp.finfo(logits.dtype).min
    peak = jnp.max(jnp.where(mask, logits, least), axis=-1, keepdims=True)
    weights = jnp.where(mask, jnp.exp(logits - peak), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = _einsum(query)("bkgst,btkh->bskgh", weights.astype(value_BTKH.dtype), value_BTKH)
    seen = jnp.where(total > 0, total, 1.0)
    lse = jnp.where(total > 0, peak + jnp.log(seen), least)[..., 0]
    return out / jnp.moveaxis(seen, 3, 1), jnp.moveaxis(lse, 3, 1)


def _gradient_block(key_BTKH, value_BTKH, key_tags, carry, block):
    query, positions, documents, d_out, lse, delta = block
    logits, mask = _logits(query, key_BTKH, (positions, documents), key_tags)
    lse, delta = (jnp.moveaxis(x, 1, 3)[..., None] for x in (lse, delta))
    weights = jnp.where(mask, jnp.exp(logits - lse), 0.0)
    einsum, dtype, scale = _einsum(query), query.dtype, 1.0 / math.sqrt(query.shape[-1])
    d_weights = einsum("bskgh,btkh->bkgst", d_out, value_BTKH)
    d_logits = (weights * (d_weights - delta) * scale).astype(dtype)
    d_key = carry[0] + einsum("bkgst,bskgh->btkh", d_logits, query)
    d_value = carry[1] + einsum("bkgst,bskgh->btkh", weights.astype(dtype), d_out)
    return (d_key, d_value), einsum("bkgst,btkh->bskgh", d_logits, key_BTKH)
