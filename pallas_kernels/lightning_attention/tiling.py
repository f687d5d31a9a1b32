"""Tiles of the TPU kernels, as data per device kind."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Sizes of one kernel launch on a TPU."""

    chunk: int  # C, tokens whose mutual products are one matmul
    block_bytes: int  # most of one sequence tensor brought into VMEM together
    unroll: int  # chunks of a block scheduled together
    step_heads: int  # heads of one decode block
    vmem_limit_bytes: int | None = None  # None: the compiler's own


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


def vmem_bytes(tensors: int, block: int, H: int, itemsize: int, tiles: Tiling, *, packed: bool) -> int:
    """VMEM of a scan over `tensors` sequence tensors (in and out), from block and scratch shapes; blocks exist twice.

    The compiler adds what it spills and its own buffers.
    """
    lanes, C = max(H, 128), tiles.chunk
    sequences = tensors * block * lanes * itemsize
    states, lines = 2 * H * lanes * 4, 8 * (block if packed else C) * 4
    scratch = H * lanes * 4 + C * max(C, 128) * 4 + C * 128 * 4
    return 2 * (sequences + states + lines) + scratch


def step_vmem_bytes(H: int, itemsize: int, tiles: Tiling) -> int:
    """VMEM of a decode block: the state in and out, q, k, v, out; each twice. Eight heads fill a register's rows."""
    lanes = max(H, 128)
    return 2 * tiles.step_heads * lanes * (2 * H * 4 + 4 * itemsize)
