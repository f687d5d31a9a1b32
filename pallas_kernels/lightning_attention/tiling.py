"""Tiles of the TPU kernels, as data per device kind."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Sizes of one kernel launch on a TPU."""

    chunk: int  # C, tokens whose mutual products are one matmul
    block_bytes: int  # most of one sequence tensor brought into VMEM together
    unroll: int  # chunks of a block scheduled together
    step_heads: int  # heads of one decode block


# Counted, not measured: a step of the grid costs a fraction of a microsecond whatever it does, so a block must hold
# enough bytes to hide it (2,048 tokens x 128 x bfloat16 = 512 KiB); the reverse scan keeps six of them twice, 6 MiB of
# the 16 MiB that the compiler grants by default. The matmul unit is 128 wide on v5, 256 wide on v6.
DEFAULT = Tiling(chunk=128, block_bytes=512 * 1024, unroll=4, step_heads=8)
BY_DEVICE_KIND = {"TPU v6 lite": dataclasses.replace(DEFAULT, chunk=256, unroll=2)}


def tiling(device_kind: str) -> Tiling:
    """The tiles for a device, as `jax.Device.device_kind` names it."""
    return BY_DEVICE_KIND.get(device_kind, DEFAULT)


def block_tokens(S: int, H: int, itemsize: int, tiles: Tiling) -> int:
    """Tokens of a block: a multiple of the chunk that divides S (itself one), as many as `block_bytes` holds."""
    lanes = max(H, 128)  # VMEM fills a row of 128 lanes whatever the head dim
    most = max(tiles.block_bytes // (lanes * itemsize * tiles.chunk), 1)
    chunks = S // tiles.chunk
    return tiles.chunk * max(n for n in range(1, most + 1) if chunks % n == 0)
