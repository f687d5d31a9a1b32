"""Grouped-query softmax attention with causal and document masks, on one device."""

from pallas_kernels.softmax_attention.xla import softmax_attention

__all__ = ["softmax_attention"]
