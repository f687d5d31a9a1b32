"""Time of a step from three speeds of a chip: its arithmetic, its memory, its links. A bound, not a measurement.

    best    max(arithmetic, memory, messages)               everything beside everything
    shown   max(arithmetic, memory, hidden) + the others    those messages beside work that the program has there
    worst   max(arithmetic, memory) + messages              no message beside other work

Matrix multiplications at the data sheet's bfloat16 speed, memory at its full bandwidth; a message over a mesh axis as a
ring along one dimension of the torus (or through NVLink; over the network where the axis leaves a host or a slice).
"""

import dataclasses
import math
from collections.abc import Mapping

from mm01_jax.plan.targets import Target
from mm01_jax.plan.traced_work import Collective

GPUS_OF_A_HOST = 8


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one step. hidden: of its messages those between whose start and end the program has other work."""

    compute: float
    memory: float
    messages: float
    hidden: float = 0.0

    @property
    def best(self) -> float:
        return max(self.compute, self.memory, self.messages)

    @property
    def shown(self) -> float:
        return max(self.compute, self.memory, self.hidden) + self.messages - self.hidden

    @property
    def worst(self) -> float:
        return max(self.compute, self.memory) + self.messages


def times(
    target: Target,
    mesh: Mapping[str, int],
    flops: float,
    moved: float,
    collectives: Mapping[Collective, int],
    *,
    overlapped: Mapping[Collective, int] | None = None,
) -> Times:
    """Seconds of a step that does `flops`, moves `moved` bytes and sends `collectives` (with counts) on every chip.

    overlapped: of the collectives those that run beside work, with counts.
    """
    sent = sum(count * seconds(one, target, mesh) for one, count in collectives.items())
    hidden = sum(count * seconds(one, target, mesh) for one, count in (overlapped or {}).items())
    return Times(flops / target.chip.flops, moved / target.chip.hbm_speed, sent, hidden)


def seconds(one: Collective, target: Target, mesh: Mapping[str, int]) -> float:
    """Of one message, its start-up not counted."""
    members = math.prod(mesh[axis] for axis in one.axes)
    outer = _outer(one.axes, target, mesh)
    inner = members // outer
    turns = 2 if one.kind == "all-reduce" else 1
    if one.kind == "collective-permute":
        return one.bytes / (target.chip.network_speed if outer > 1 else target.chip.link_speed)
    if one.kind.endswith("all-to-all"):  # each member has its own part for each: most of it leaves where outer > 1
        far = one.bytes * (outer - 1) / outer / target.chip.network_speed
        return far + one.bytes * (inner - 1) / members / target.chip.link_speed
    near = turns * one.bytes * (inner - 1) / inner / target.chip.link_speed
    # Between hosts or slices each member carries its share of what the near ones have put together.
    return near + turns * one.bytes / inner * (outer - 1) / outer / target.chip.network_speed


def _outer(axes: tuple[str, ...], target: Target, mesh: Mapping[str, int]) -> int:
    """How many hosts (GPUs) or slices (TPUs) a group over `axes` spans; the last axis numbers devices fastest."""
    if target.platform == "tpu":
        return target.slices if "data" in axes else 1
    near, stride = 1, 1
    for axis in reversed(mesh):
        if axis in axes:
            near *= max(1, min(mesh[axis], GPUS_OF_A_HOST // stride))
        stride *= mesh[axis]
    return math.prod(mesh[axis] for axis in axes) // near
