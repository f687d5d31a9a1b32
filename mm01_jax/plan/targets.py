"""The machines that a plan can be made for, by the names their vendors sell them under. Imports no jax.

v5p-1024     Google's name: v4 and v5p count cores, two a chip, so this is 512 chips, an 8x8x8 torus
v6e-256      v5e and v6e count chips
v6e-256x2    two such slices, joined by the data-centre network
v5p:4x4x8    a torus by its shape, for generations and sizes without a name here
h100-512     GPUs, eight a host; h200-16 too
"""

import dataclasses
import math
import re

from mm01_jax import chips
from mm01_jax.config import ConfigError, Problem, fields

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip as its vendor's data sheet has it; a device of jax is one chip.

    flops: dense bfloat16 FLOP/s. hbm: bytes a program may use (of TPUs what libtpu's compiler allows, measured by
    programs that it refused). hbm_speed: bytes/s of the memory. link_speed: bytes/s that a chip sends along one
    dimension of the torus, both ways together, or through NVLink. network_speed: bytes/s of one chip's share of the
    network between slices or hosts.
    """

    flops: float
    hbm: int
    hbm_speed: float
    link_speed: float
    network_speed: float


def _chip(generation: str, **measures) -> Chip:
    return Chip(flops=chips.CHIPS[generation].flops, **measures)


CHIPS = {
    "v4": _chip("v4", hbm=int(30.75 * GIB), hbm_speed=1.2e12, link_speed=90e9, network_speed=6.25e9),
    "v5e": _chip("v5e", hbm=int(15.75 * GIB), hbm_speed=0.819e12, link_speed=90e9, network_speed=6.25e9),
    "v5p": _chip("v5p", hbm=int(95.73 * GIB), hbm_speed=2.765e12, link_speed=180e9, network_speed=6.25e9),
    "v6e": _chip("v6e", hbm=int(31.24 * GIB), hbm_speed=1.64e12, link_speed=180e9, network_speed=12.5e9),
    "h100": _chip("h100", hbm=84_942_979_072, hbm_speed=3.352e12, link_speed=450e9, network_speed=50e9),
    # The data sheet's 141 GB are GiB, of which the driver gives out 139.
    "h200": _chip("h200", hbm=139 * GIB, hbm_speed=4.8e12, link_speed=450e9, network_speed=50e9),
}

_TORUS = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    1024: "8x8x16",
    2048: "8x16x16",
    4096: "16x16x16",
    6144: "16x16x24",
}
_PLANE = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
# Generation -> (cores that a name counts for one chip, chips -> shape).
_TPUS = {"v4": (2, _TORUS), "v5p": (2, _TORUS), "v5e": (1, _PLANE), "v6e": (1, _PLANE)}
_GPUS = ("h100", "h200")
_GPU_COUNTS = tuple(2**n for n in range(14))
_GPUS_OF_A_HOST = 8
_MOST_SLICES = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A machine: `topology` as the compiler's plugin wants it named, `chips` of all slices together."""

    name: str
    platform: str  # "tpu" or "cuda"
    topology: str
    chips: int
    slices: int
    chip: Chip

    @property
    def generation(self) -> str:
        return re.split("[-:]", self.name)[0]


def parse(name: str) -> Target:
    """The target of a name; ConfigError with the nearest name when there is none."""
    if match := re.fullmatch(rf"({'|'.join(_GPUS)})-(\d+)", name):
        if int(match[2]) in _GPU_COUNTS:
            return _gpus(name, match[1], int(match[2]))
    elif match := re.fullmatch(r"(v\w+)-(\d+)(?:x(\d+))?", name):
        generation, size, slices = match[1], int(match[2]), int(match[3] or 1)
        cores, shapes = _TPUS.get(generation, (1, {}))
        if size % cores == 0 and size // cores in shapes and 1 <= slices <= _MOST_SLICES:
            return _tpus(name, generation, shapes[size // cores], slices)
    elif match := re.fullmatch(r"(v4|v5p):([1-9]\d*(?:x[1-9]\d*){2})|(v5e|v6e):([1-9]\d*x[1-9]\d*)", name):
        return _tpus(name, match[1] or match[3], match[2] or match[4], 1)
    raise ConfigError(
        [
            Problem(
                key="--target",
                got=name,
                allowed="a TPU slice (v4- or v5p-CORES, v5e- or v6e-CHIPS; x2 after it: two), v5p:XxYxZ, h100-, h200-N",
                nearest=_nearest(name),
            )
        ]
    )


def _tpus(name: str, generation: str, shape: str, slices: int) -> Target:
    chips = math.prod(map(int, shape.split("x"))) * slices
    chip = CHIPS[generation]
    return Target(name=name, platform="tpu", topology=f"{generation}:{shape}", chips=chips, slices=slices, chip=chip)


def _gpus(name: str, generation: str, chips: int) -> Target:
    hosts, each = max(1, chips // _GPUS_OF_A_HOST), min(chips, _GPUS_OF_A_HOST)
    chip = CHIPS[generation]
    return Target(name=name, platform="cuda", topology=f"1x{hosts}x{each}", chips=chips, slices=1, chip=chip)


def names() -> list[str]:
    """Every name of one slice."""
    tpus = [f"{kind}-{chips * cores}" for kind, (cores, shapes) in _TPUS.items() for chips in shapes]
    return [*tpus, *(f"{kind}-{count}" for kind in _GPUS for count in _GPU_COUNTS)]


def _nearest(name: str) -> str | None:
    """The generation as typed or the nearest, at the size nearest in ratio."""
    match = re.fullmatch(r"([a-zA-Z]\w*?)[-_: ]?(\d+)(x\d+)?", name.lower().replace("v5litepod", "v5e"))
    if not match or int(match[2]) < 1:
        return fields.nearest_name(name, names())
    generation = fields.nearest_name(match[1], list(CHIPS))
    sizes = [other for other in names() if other.startswith(f"{generation}-")]
    if not sizes:
        return fields.nearest_name(name, names())
    return min(sizes, key=lambda other: abs(math.log(int(other.split("-")[1]) / int(match[2]))))
