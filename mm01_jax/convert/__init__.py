"""Weights both ways between PyTorch checkpoints and ours (docs/conversion.md)."""

from mm01_jax.convert.pretrained import from_pretrained

__all__ = ["from_pretrained"]
