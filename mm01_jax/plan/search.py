"""Which mesh of a target's chips is best? By shapes alone: bytes as `memory` estimates them, time from the counts on
paper of what dominates (experts, their exchange, weights gathered, sums over tensor). Compile the winner to be sure.
"""

import dataclasses
from collections import Counter

import jax

from mm01_jax.config import MESH_AXES, Config
from mm01_jax.model.flops import train_flops_per_token
from mm01_jax.plan import memory, meshes, roofline
from mm01_jax.plan.planner import abstract_mesh
from mm01_jax.plan.steps import make_step
from mm01_jax.plan.targets import Target
from mm01_jax.plan.traced_work import Collective


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mesh, the bytes of one chip, and what the time of a step is made of."""

    config: Config
    bytes: int
    times: roofline.Times

    @property
    def seconds(self) -> float:
        """Of a step, no message beside other work."""
        return self.times.worst


def search(kind: str, config: Config, target: Target) -> list[Candidate]:
    """All meshes that the model and batch divide over, those that fit first, the fastest of them first."""
    candidates = [
        _judge(kind, dataclasses.replace(config, mesh=mesh), target) for mesh in meshes.valid(kind, config, target)
    ]
    return sorted(
        candidates, key=lambda c: (c.bytes > target.chip.hbm, c.seconds if c.bytes <= target.chip.hbm else c.bytes)
    )


def _judge(kind: str, config: Config, target: Target) -> Candidate:
    mesh = abstract_mesh(config, target)
    with jax.sharding.use_abstract_mesh(mesh):
        step = make_step(kind, config, mesh)
    given = memory.per_chip(step)
    made = memory.estimated(kind, config, step.tokens, given["parameters"])
    times = _times(kind, config, target, step.tokens, given)
    return Candidate(config, sum(given.values()) + sum(made.values()), times)


def _times(kind: str, config: Config, target: Target, tokens: int, given: dict[str, int]) -> roofline.Times:
    model, train = config.model, kind == "train"
    micro = config.train.num_microbatches if train else 1
    passes = 3 if train else 1  # forward; again for the backward; backward
    chip_tokens = tokens // config.mesh.shards("batch", "seq")
    mesh = {axis: getattr(config.mesh, axis) for axis in MESH_AXES}
    weights = given["parameters"] * config.mesh.shards("embed") // (2 if config.compute.param_dtype == "float32" else 1)
    buffers = memory.expert_buffers(config, chip_tokens // micro)
    rows = buffers.groups * buffers.shards * buffers.send * model.embed_dim * 2
    tensor, expert = config.mesh.shards("ffn"), config.mesh.shards("expert")
    layer_calls = model.num_layers * micro * passes
    messages = Counter()

    def add(kind: str, logical: str, size: float, count: int) -> None:
        axes = tuple(axis for axis in MESH_AXES if axis in getattr(config.mesh.rules, logical) and mesh[axis] > 1)
        if axes:
            messages[Collective(kind, axes, int(size))] += count

    add("all-to-all", "expert", rows / tensor, 2 * layer_calls)
    add("all-gather", "ffn", rows * (1 if expert > 1 else 0), 2 * layer_calls)
    add("all-reduce", "heads", chip_tokens / micro * model.embed_dim * 2, 2 * layer_calls)
    add("all-gather", "embed", weights, micro * passes + (micro if train else 0))
    keys = chip_tokens / micro * config.mesh.shards("seq") * model.num_kv_heads * model.head_dim * 4
    add("all-gather", "seq", keys / config.mesh.shards("kv_heads"), layer_calls // len(model.period))
    flops = tokens * train_flops_per_token(model, config.train.sequence_length) * (4 / 3 if train else 1 / 3)
    moved = micro * passes * weights + 2 * given.get("optimizer", 0) + given.get("cache", 0)
    # Activations: what compiled programs of this model move.
    moved += layer_calls * chip_tokens / micro * model.embed_dim * 60
    return roofline.times(target, mesh, flops / target.chips, moved, messages)
