"""One plan: a step of a config on a target, its bytes, work and messages on one chip, and whether it fits."""

import contextlib
import dataclasses
from collections import Counter

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from mm01_jax import sharding
from mm01_jax.chips import CHIPS
from mm01_jax.config import MESH_AXES, Config
from mm01_jax.model.flops import mfu, projector_flops_per_tile, tower_flops_per_tile, train_flops_per_token
from mm01_jax.model.remat import settle
from mm01_jax.parallel import sequence_layout
from mm01_jax.plan import compiler, memory, roofline
from mm01_jax.plan.hlo import collectives, traffic
from mm01_jax.plan.hlo.largest import Made, largest_arrays
from mm01_jax.plan.hlo.text import parse
from mm01_jax.plan.steps import Step, make_step, tiles_of_row
from mm01_jax.plan.targets import Target
from mm01_jax.plan.traced_work import Assumed, Counts, count

_LARGEST = 6


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that a report says; bytes, FLOPs and counts are of one chip and one call.

    arguments: part -> bytes. estimated: what the step makes, by shapes. compiled: None in quick mode.
    messages: collectives with counts, of the compiled program, else those that the program states itself.
    overlapped: of them, those that run beside other work. moved: bytes to and from memory, None in quick mode.
    model_flops: what the mathematics needs, of all chips together. largest: arrays of the compiled program.
    """

    kind: str
    target: Target
    config: Config
    tokens: int
    arguments: dict[str, int]
    estimated: dict[str, int]
    counts: Counts
    messages: Counter
    overlapped: Counter
    moved: float | None
    model_flops: float
    compiled: compiler.Compiled | None
    largest: list[Made]

    @property
    def mesh(self) -> dict[str, int]:
        return {axis: getattr(self.config.mesh, axis) for axis in MESH_AXES}

    @property
    def peak(self) -> int:
        """Bytes at the fullest moment: the compiler's figure, else the sum of the parts."""
        if self.compiled is not None and self.compiled.memory:
            return self.compiled.memory["peak"]
        return sum(self.arguments.values()) + sum(self.estimated.values())

    @property
    def fits(self) -> bool:
        refused = self.compiled is not None and self.compiled.refusal is not None
        return not refused and self.needed <= self.target.chip.hbm

    @property
    def needed(self) -> int:
        """Bytes that decide whether it fits. TPU compilers judge their peak; a GPU is asked for all temporaries in one
        piece, and nobody judges but we.
        """
        if self.target.platform == "cuda" and self.compiled is not None and self.compiled.memory:
            return self.compiled.memory["arguments"] + self.compiled.memory["temporaries"]
        return self.peak

    @property
    def times(self) -> roofline.Times | None:
        if self.moved is None:
            return None
        sent = {"collectives": self.messages, "overlapped": self.overlapped}
        return roofline.times(self.target, self.mesh, self.counts.flops, self.moved, **sent)

    def mfu(self, seconds: float) -> float:
        return mfu(self.model_flops / seconds, self.target.chip.flops, self.target.chips)


def make_plan(kind: str, config: Config, target: Target, *, compile_it: bool) -> Plan:
    """Plans a step. `config.mesh` has as many devices as `target`.

    Raises:
      ValueError: the target's compiler is not installed (see `compiler.devices`).
    """
    with _mesh_in_force(config, target, compile_it=compile_it) as mesh:
        step = make_step(kind, config, mesh)
        if kind == "train" and config.compute.remat == "auto":
            remat = settle(config, step.arguments[0], target.chip.hbm)
            config = dataclasses.replace(config, compute=dataclasses.replace(config.compute, remat=remat))
            step = make_step(kind, config, mesh)
        compiled = compiler.compile_step(step) if compile_it else None
        # Quick mode counts what it traced; the compiler's program has been traced already and the trace is cached.
        assumed = Assumed(_balanced_rows(config, step), _pairs_computed(kind, config))
        counts = count(step.function.trace(*step.arguments).jaxpr, dict(mesh.shape), assumed)
    arguments = memory.per_chip(step)
    estimated = memory.estimated(kind, config, step.tokens, arguments["parameters"])
    messages, overlapped, moved, largest = counts.collectives, Counter(), None, []
    if compiled is not None and compiled.text:
        program = parse(compiled.text)
        sent = collectives.find(program, dict(mesh.shape))
        messages, overlapped = sent.counts, sent.overlapped
        moved, largest = traffic.bytes_moved(program, assumed.branch_share), largest_arrays(program, _LARGEST)
    return Plan(
        kind,
        target,
        config,
        step.tokens,
        arguments,
        estimated,
        counts,
        messages,
        overlapped,
        moved,
        _model_flops(kind, config, step.tokens),
        compiled,
        largest,
    )


@contextlib.contextmanager
def _mesh_in_force(config: Config, target: Target, *, compile_it: bool):
    if compile_it:
        mesh = sharding.make_mesh(config.mesh, list(compiler.devices(target)))
        with jax.set_mesh(mesh):
            yield mesh
        return
    mesh = abstract_mesh(config, target)
    with jax.sharding.use_abstract_mesh(mesh):
        yield mesh


def abstract_mesh(config: Config, target: Target) -> AbstractMesh:
    """The config's mesh with the kind of its devices and no device: enough to trace, no compiler needed."""
    platform = "gpu" if target.platform == "cuda" else "tpu"
    device = AbstractDevice(device_kind=CHIPS[target.generation].device_kind, num_cores=None, platform=platform)
    sizes = tuple(getattr(config.mesh, axis) for axis in MESH_AXES)
    return AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 4, abstract_device=device)


def _balanced_rows(config: Config, step: Step) -> int:
    """Rows of one grouped matmul on one chip when every expert is chosen equally often."""
    tokens = step.tokens // config.mesh.shards("batch", "seq", "act_seq", "act_batch")
    if step.parts.keys() >= {"optimizer"}:
        tokens //= config.train.num_microbatches
    return max(1, tokens * config.model.num_experts_per_token // config.compute.exchange_groups)


def _pairs_computed(kind: str, config: Config) -> float:
    """Share of the pairs of stripes in softmax attention that the busiest chip does not skip, documents aside."""
    if kind != "train":
        return 1.0
    return sequence_layout.busiest(config.mesh.shards("seq"), config.compute.sequence_layout)


def _vision_flops(config: Config) -> float:
    """Forward and backward of the tiles of one step."""
    if config.vision is None:
        return 0.0
    a_tile = tower_flops_per_tile(config.vision) + projector_flops_per_tile(config.vision, config.model)
    return 3.0 * a_tile * config.train.batch_size * tiles_of_row(config)


def _model_flops(kind: str, config: Config, tokens: int) -> float:
    """Training: forward and backward of full rows. Decode: a third of the same; a token's cache is full."""
    length = config.train.sequence_length
    if kind == "train":
        return tokens * train_flops_per_token(config.model, length) + _vision_flops(config)
    return tokens * train_flops_per_token(config.model, 2 * length - 1) / 3
