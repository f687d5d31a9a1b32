"""A chunk over a cache on NVIDIA Hopper (Pallas Mosaic GPU: TMA and wgmma), bfloat16: `gpu_kernel`."""

from pallas_kernels.chunk_attention import gpu_kernel
from pallas_kernels.softmax_attention import gpu
from pallas_kernels.softmax_attention.gpu_blocks import TILE
from pallas_kernels.softmax_attention.masking import filled_up


def unsupported(query_BSNH, keys) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    if reason := gpu.unsupported(query_BSNH, None, None):
        return reason
    if keys.shape[3] % gpu_kernel.KEYS:
        return f"places of a row must be a multiple of {gpu_kernel.KEYS}, got {keys.shape[3]}"
    return None


def attend(query_BSNH, keys, values, layer, first_B, count_B):
    """Contract in the package's docstring."""
    S = query_BSNH.shape[1]
    return gpu_kernel.attend(filled_up(query_BSNH, TILE), keys, values, layer, first_B, count_B)[:, :S]
