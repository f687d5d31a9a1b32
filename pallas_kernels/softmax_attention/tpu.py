"""Softmax attention for TPUs (Pallas Mosaic TPU), bfloat16 or float32: `tpu_forward`, `tpu_backward`."""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.softmax_attention import tpu_backward, tpu_forward
from pallas_kernels.softmax_attention.masking import Tags, filled_tags, filled_up
from pallas_kernels.softmax_attention.tpu_blocks import TILE, lines_of
from pallas_kernels.softmax_attention.whole import Whole, with_delta

HEAD_DIMS = (64, 128, 256)
FEWEST = 64  # queries; a program has 128 and more


def unsupported(query_BSNH, key_BTKH, value_BTKH) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del key_BTKH, value_BTKH
    if dispatch.platform() != "tpu":
        return f"the code is for {dispatch.platform()}, not for a TPU"
    if query_BSNH.dtype not in (jnp.bfloat16, jnp.float32):
        return f"it takes bfloat16 or float32, got {query_BSNH.dtype.name}"
    if query_BSNH.shape[-1] not in HEAD_DIMS:
        return f"head_dim must be one of {HEAD_DIMS}, got {query_BSNH.shape[-1]}"
    if query_BSNH.shape[1] < FEWEST:
        return f"it takes at least {FEWEST} queries a row, got {query_BSNH.shape[1]}"
    return None


def attend(query, key, value, query_tags: Tags, key_tags: Tags, dtype):
    """Contract in the package's docstring."""
    S = query.shape[1]
    arrays = map(_to_kernel, (query, key, value))
    tags = filled_tags(query_tags, TILE, -1), filled_tags(key_tags, TILE, -2)
    out, lse = tpu_forward.attend(*arrays, *tags, dtype)
    return _from_kernel(out, S), _from_kernel(lse, S)


def attend_gradient(query, key, value, query_tags: Tags, key_tags: Tags, whole: Whole, dtype):
    """Contract in the package's docstring."""
    S, T = query.shape[1], key.shape[1]
    d_out, lse, delta = with_delta(whole)
    stats = lines_of(*(_to_kernel(x.astype(jnp.float32)) for x in (lse, delta)))
    arrays = (*map(_to_kernel, (query, key, value, d_out.astype(query.dtype))), stats)
    tags = filled_tags(query_tags, TILE, -1), filled_tags(key_tags, TILE, -2)
    dq = tpu_backward.query_gradient(arrays, *tags, dtype)
    dk, dv = tpu_backward.key_gradients(arrays, *tags, dtype)
    return _from_kernel(dq, S), _from_kernel(dk, T), _from_kernel(dv, T)


def _to_kernel(x: jax.Array) -> jax.Array:
    """(B, S, N, ...) -> (B, N, S, ...), S filled up to whole tiles: time and head dim share VMEM's tiles."""
    return jnp.swapaxes(filled_up(x, TILE), 1, 2)


def _from_kernel(x: jax.Array, S: int) -> jax.Array:
    return jnp.swapaxes(x[:, :, :S], 1, 2)
