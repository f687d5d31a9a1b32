"""A chunk over a cache on NVIDIA Hopper (Pallas Mosaic GPU: TMA and wgmma), bfloat16: `gpu_kernel`."""

import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.chunk_attention import gpu_kernel
from pallas_kernels.softmax_attention.gpu import FEWEST, HEAD_DIMS
from pallas_kernels.softmax_attention.gpu_blocks import TILE
from pallas_kernels.softmax_attention.masking import filled_up


def unsupported(query_BSNH, keys) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    if reason := dispatch.why_not_hopper():
        return reason
    if query_BSNH.dtype != jnp.bfloat16:
        return f"it takes bfloat16, got {query_BSNH.dtype.name}"
    if query_BSNH.shape[-1] not in HEAD_DIMS:
        return f"head_dim must be one of {HEAD_DIMS}, got {query_BSNH.shape[-1]}"
    if query_BSNH.shape[1] < FEWEST:
        return f"it takes at least {FEWEST} queries a row, got {query_BSNH.shape[1]}"
    if keys.shape[3] % gpu_kernel.KEYS:
        return f"places of a row must be a multiple of {gpu_kernel.KEYS}, got {keys.shape[3]}"
    return None


def attend(query_BSNH, keys, values, layer, first_B, count_B):
    """Contract in the package's docstring."""
    S = query_BSNH.shape[1]
    return gpu_kernel.attend(filled_up(query_BSNH, TILE), keys, values, layer, first_B, count_B)[:, :S]
