"""The collectives of a compiled program: what kind, over which mesh axes, how large, how often."""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping

import numpy as np

from mm01_jax.plan.hlo.text import Instruction, Program, sizes
from mm01_jax.plan.traced_work import Collective

WORK = ("fusion", "fusion-start", "custom-call", "dot", "convolution", "while")
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Messages:
    """Collectives by kind, axes and size with their counts; and how many have other work between start and end."""

    counts: Counter
    overlapped: Counter


def find(program: Program, mesh: Mapping[str, int]) -> Messages:
    """Every collective of `program`, whose partitions are the devices of `mesh` (axis -> size) in row-major order."""
    messages = Messages(Counter(), Counter())
    beside = _beside_work(program)
    for name, instructions in program.computations.items():
        if not (times := program.times[name]):
            continue
        scattered = _scatters(name, instructions)
        for instruction in instructions:
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            kind = "reduce-scatter" if scattered and kind == "all-reduce" else kind
            key = Collective(kind, axes(instruction, mesh), _bytes(instruction))
            if key.axes:
                messages.counts[key] += times
                messages.overlapped[key] += times * (instruction.name in beside or name in beside)
    return messages


def _scatters(name: str, instructions: list[Instruction]) -> bool:
    """TPUs do a reduce-scatter as one fusion of an all-reduce and the slice that is kept."""
    return "all-reduce-scatter" in name and any(i.root and "dynamic-slice" in i.opcode for i in instructions)


def _beside_work(program: Program) -> set[str]:
    """Starts, and computations that are started, with work scheduled before their end; text is in schedule order.

    What another core does is started twice, empty and with its operands (`-update`): it runs from there.
    """
    beside: set[str] = set()
    for instructions in program.computations.values():
        updated = {i.operands[0] for i in instructions if i.opcode.endswith("-update")}
        begun: dict[str, Instruction] = {}
        waiting: dict[str, Instruction] = {}
        for instruction in instructions:
            if instruction.opcode in WORK:
                for start in waiting.values():
                    beside |= {start.name, *_called(program, start)}
                waiting = {}
            elif instruction.opcode.endswith("-start"):
                (begun if instruction.name in updated else waiting)[instruction.name] = instruction
            elif instruction.opcode.endswith("-update") and instruction.operands[0] in begun:
                waiting[instruction.name] = begun.pop(instruction.operands[0])
            elif instruction.opcode.endswith("-done"):
                waiting.pop(instruction.operands[0], None)
    return beside


def _called(program: Program, instruction: Instruction) -> set[str]:
    """The computations that an instruction calls, and those that they call."""
    found = {name for called in instruction.calls.values() for name in called if name in program.computations}
    return found.union(*(_called(program, inner) for name in found for inner in program.computations[name]))


def _bytes(instruction: Instruction) -> int:
    """The larger side on one chip, of all arrays that travel in one message.

    A start's result is (operands, results, contexts), of all-reduce the results alone.
    """
    array_bytes, count = sizes(instruction.shape), len(instruction.operands)
    if instruction.opcode.endswith("-start"):
        return max(sum(array_bytes[:count]), sum(array_bytes[count : 2 * count]))
    result = sum(array_bytes)
    return result * group(instruction).size if instruction.opcode == "reduce-scatter" else result


def axes(instruction: Instruction, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of one group differ."""
    members = group(instruction)
    places = np.unravel_index(members, tuple(mesh.values()))
    return tuple(axis for axis, place in zip(mesh, places, strict=True) if len(set(place.tolist())) > 1)


def group(instruction: Instruction) -> np.ndarray:
    """Partition numbers of one group (of a permutation: of one pair that differs)."""
    text = instruction.rest
    if listed := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        dims = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", listed[1])}
        named = re.findall(r"'(\w+)'", listed[2])
        order = [*(i for i, d in enumerate(dims) if d not in named), *(list(dims).index(d) for d in named)]
        width = int(np.prod([dims[d] for d in named]))
        return np.arange(np.prod([*dims.values()])).reshape(tuple(dims.values())).transpose(order).reshape(-1, width)[0]
    if listed := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        dims = [int(d) for d in listed[3].split(",")]
        order = [int(d) for d in listed[4].split(",")] if listed[4] else range(len(dims))
        return np.arange(np.prod(dims)).reshape(dims).transpose(order).reshape(int(listed[1]), int(listed[2]))[0]
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", text):
        return np.array([int(d) for d in listed[1].split(",")])
    return np.array([0])
