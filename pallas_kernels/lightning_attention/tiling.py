"""Tiles of the TPU kernels, as data per device kind."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Sizes of one kernel launch on a TPU."""

    chunk: int  # C, tokens whose mutual products are one matmul
    block: int  # tokens brought into VMEM together; the largest multiple of the chunk up to this that divides S is used
    unroll: int  # chunks of a block scheduled together
    step_heads: int  # heads of one decode block


# Counted, not measured: a step of the grid costs a fraction of a microsecond whatever it does, so a block must hold
# enough bytes to hide it (2,048 tokens x 128 x bfloat16 = 512 KiB per tensor), and the matmul unit is 128 wide on
# v5, 256 wide on v6.
DEFAULT = Tiling(chunk=128, block=2048, unroll=4, step_heads=8)
BY_DEVICE_KIND = {"TPU v6 lite": dataclasses.replace(DEFAULT, chunk=256, unroll=2)}


def tiling(device_kind: str) -> Tiling:
    """The tiles for a device, as `jax.Device.device_kind` names it."""
    return BY_DEVICE_KIND.get(device_kind, DEFAULT)


def block_tokens(S: int, chunk: int, most: int) -> int:
    """Largest multiple of `chunk` that divides S, itself a multiple of `chunk`, and is at most `most`."""
    chunks = S // chunk
    return chunk * max(n for n in range(1, max(most // chunk, 1) + 1) if chunks % n == 0)
