"""The chips that this code knows: jax's name and the peak of each, from vendors' data sheets. Imports no jax."""

from typing import NamedTuple


class Chip(NamedTuple):
    """device_kind: how jax's name of the device begins. flops: dense bfloat16 FLOP/s."""

    device_kind: str
    flops: float


CHIPS = {
    "v4": Chip("TPU v4", 275e12),
    "v5e": Chip("TPU v5 lite", 197e12),
    "v5p": Chip("TPU v5", 459e12),
    "v6e": Chip("TPU v6 lite", 918e12),
    "a100": Chip("NVIDIA A100", 312e12),
    "h100": Chip("NVIDIA H100", 989e12),
    "h200": Chip("NVIDIA H200", 989e12),
}


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 peak in FLOP/s of a device by jax's name for it, or None where it is not known (CPUs)."""
    known = [chip for chip in CHIPS.values() if device_kind.startswith(chip.device_kind)]
    return max(known, key=lambda chip: len(chip.device_kind)).flops if known else None
