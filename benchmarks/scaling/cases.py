"""What is trained in the tables of scaling: a shape on a mesh with its rows, as a config."""

import dataclasses
import itertools
import math

from mm01_jax.config import MESH_AXES, Config

DOCUMENT = 4096  # tokens at most, as `benchmarks.mesh` has them

SCALINGS = ("strong", "weak")
ROWS = 4  # of one GPU; of strong scaling at least as many as there are GPUs
PERIOD_EXPERTS = 4  # of one period of text_01: what one H200 trains; more where `expert` has more shards
PERIOD_VOCABULARY = 32_768

Mesh = tuple[tuple[str, int], ...]  # (axis, size), of those that are not 1


@dataclasses.dataclass(frozen=True)
class Case:
    """One process: a shape on a mesh (empty: one GPU).

    scaling: "strong" (`rows` in all), "weak" (`rows` on each GPU), "bound" (of strong's losses), or "row": one row, of
    `length` tokens on each GPU; in documents of at most `document` tokens, 0: one document.
    """

    shape: str
    scaling: str
    mesh: Mesh
    rows: int = ROWS
    length: int = 0
    document: int = DOCUMENT

    @property
    def devices(self) -> int:
        return math.prod(size for _, size in self.mesh)

    @property
    def name(self) -> str:
        size = f"{self.length * self.devices:,} tokens" if self.length else f"{self.rows} rows"
        return f"{self.shape}, {self.scaling} of {size}, {mesh_name(self.mesh)}"


def mesh_name(mesh: Mesh) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh) or "one GPU"


def meshes(devices: int) -> list[Mesh]:
    """Every mesh of `devices` over one, two or three axes whose sizes are as equal as powers of two can be."""
    found = [((axis, devices),) for axis in MESH_AXES]
    for count in (2, 3):
        sizes = _split(devices, count)
        if sizes:
            found += [tuple(zip(axes, sizes, strict=True)) for axes in itertools.combinations(MESH_AXES, count)]
    return found


def _split(devices: int, count: int) -> tuple[int, ...] | None:
    power = devices.bit_length() - 1
    if 2**power != devices or power < count:
        return None
    return tuple(2 ** (power // count + (at >= count - power % count)) for at in range(count))


def config_of(case: Case) -> Config:
    """The case's config; mixers' outputs at a quarter, as benchmarks/mesh.py says why."""
    from benchmarks import mesh

    config = _period(case) if case.shape == "text_01_period" else mesh.configured(dict(case.mesh), shapes=case.shape)
    if case.shape == "tiny":  # with what eight devices cut
        more = {"num_experts": 8, "num_heads": 8, "num_kv_heads": 8, "head_dim": 8}
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, **more))
    if case.length:
        size = {"batch_size": 1, "sequence_length": case.length * case.devices}
    else:
        size = {"batch_size": case.rows * (case.devices if case.scaling == "weak" else 1)}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **size))


def _period(case: Case) -> Config:
    """One period of the released model at its own widths, with as many experts as one GPU trains."""
    from benchmarks import mesh
    from configs import text_01

    config, sizes = text_01.get_config(), dict.fromkeys(MESH_AXES, 1) | dict(case.mesh)
    model = dataclasses.replace(
        config.model,
        num_periods=1,
        num_experts=max(PERIOD_EXPERTS, sizes["expert"]),
        vocab_size=PERIOD_VOCABULARY,
        lightning_beta=mesh.MIXERS,
        softmax_beta=mesh.MIXERS,
    )
    compute = dataclasses.replace(config.compute, param_dtype="bfloat16", exchange_groups=1, sequence_layout="zigzag")
    return dataclasses.replace(
        config,
        model=model,
        compute=compute,
        mesh=dataclasses.replace(config.mesh, **sizes),
        train=dataclasses.replace(config.train, loss_chunk=2048),
    )
