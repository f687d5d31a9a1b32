"""Bytes that a compiled program moves between a chip and its main memory: operands in, results out, of every
instruction, as often as it runs.

Inside a fusion nothing moves. A slice taken out of a large array moves the slice, and so does an update in place. A
kernel that is given stacks of layers and the number of one moves that layer.
Arrays that the compiler keeps in a core's own memory (TPU: VMEM) do not count.
"""

import re
from collections import Counter

from mm01_jax.plan.hlo.text import FREE, Instruction, Program, sizes

_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # in place; which operand is the update


def bytes_moved(program: Program, branch_share: float = 1) -> float:
    """Of one call of the program on one chip. branch_share: see `traced_work.Assumed`."""
    total, runs = 0, program.runs(branch_share)
    for name, instructions in program.computations.items():
        if name not in program.inlined and (times := runs[name]):
            shapes = {i.name: i.shape for i in instructions}
            calls = Counter(_signature(i, shapes) for i in instructions if i.opcode == "custom-call")
            for i in instructions:
                layers = 1
                if i.opcode == "custom-call":
                    layers = _layers(_signature(i, shapes), times * calls[_signature(i, shapes)])
                total += times * (_kernel(i, shapes, layers) if layers > 1 else _cost(i, shapes, program))
    return total


def _signature(instruction: Instruction, shapes: dict[str, str]) -> tuple[str, ...]:
    return tuple(shapes.get(name, "") for name in instruction.operands)


def _layers(operands: tuple[str, ...], calls: float) -> int:
    """Of the stacks of layers that a kernel is given with the number of one, which is int32 of one element: so many
    calls have operands of these shapes. 1 where it is given none.
    """
    largest = max(operands, key=_far, default="")
    layers = _leading(largest)
    return layers if any(x.startswith("s32[1]") for x in operands) and layers and calls % layers == 0 else 1


def _leading(shape: str) -> int:
    found = re.match(r"\w+\[(\d+),", shape)
    return int(found[1]) if found else 0


def _kernel(call: Instruction, shapes: dict[str, str], layers: int) -> float:
    """Of a call, a layer of each stack; what it gives back in place of a stack, too."""
    parts = [*(shapes.get(name, "") for name in call.operands), *re.findall(r"\w+\[[^()]*?\}", call.shape)]
    return sum(_far(x) / (layers if _leading(x) == layers else 1) for x in parts)


def _cost(instruction: Instruction, shapes: dict[str, str], program: Program) -> int:
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith("-done"):
        return 0
    if opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * _far(instruction.shape)
    if opcode in _UPDATES:
        return 2 * _far(shapes.get(instruction.operands[_UPDATES[opcode]], ""))
    if opcode == "copy-start":
        return _far(instruction.shape)  # its result names both sides
    if opcode in ("fusion", "fusion-start"):  # GPUs run some beside others; the start names operands and result
        return _fusion(instruction, shapes, program)
    return _far(instruction.shape) + sum(_far(shapes.get(name, "")) for name in instruction.operands)


def _fusion(fusion: Instruction, shapes: dict[str, str], program: Program) -> int:
    body = program.computations[fusion.calls["calls"][0]]
    parameters = _parameters(body)
    total = 0
    for number, operand in enumerate(fusion.operands):
        outer = _far(shapes.get(operand, ""))
        if outer and number in parameters:
            outer = min(outer, _read(parameters[number], body, program))
        total += outer
    return total + min(_far(fusion.shape), _written(body))


def _read(name: str, body: list[Instruction], program: Program) -> int:
    """Bytes of a fusion's parameter that its users take: slices alone count as slices, an update's target as none."""
    total = 0
    for user in (i for i in body if name in i.operands):
        if not user.root and (user.opcode in ("bitcast", "copy") or _only_copies(user, program)):
            total += _read(user.name, body, program)  # a copy in here gives what is taken other tiles, on its way
        elif user.opcode in ("dynamic-slice", "slice"):
            total += sum(sizes(user.shape))
        elif user.opcode == "fusion":  # fusions nest
            inner = program.computations[user.calls["calls"][0]]
            total += _read(_parameters(inner)[user.operands.index(name)], inner, program)
        elif not (user.opcode in _UPDATES and user.operands[0] == name):
            return next(sum(sizes(i.shape)) for i in body if i.name == name)
    return total


def _only_copies(user: Instruction, program: Program) -> bool:
    """Whether it is a fusion that gives an array other tiles and no more."""
    if user.opcode != "fusion":
        return False
    return {i.opcode for i in program.computations[user.calls["calls"][0]]} <= {"parameter", "copy", "bitcast"}


def _parameters(body: list[Instruction]) -> dict[int, str]:
    return {int(i.rest.partition(")")[0]): i.name for i in body if i.opcode == "parameter"}


def _written(body: list[Instruction]) -> int:
    """Bytes of a fusion's result: the update alone where a part of its target is replaced."""
    named = {i.name: i for i in body}
    root = next(i for i in body if i.root)
    results = [named[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for result in results:
        while result.opcode == "bitcast" and result.operands[0] in named:
            result = named[result.operands[0]]
        update = _UPDATES.get(result.opcode)
        if update is not None and result.operands[update] in named:
            total += sum(sizes(named[result.operands[update]].shape))
        else:
            total += sum(sizes(result.shape))
    return total


def _far(shape: str) -> int:
    return sum(sizes(shape, main_memory_only=True))
