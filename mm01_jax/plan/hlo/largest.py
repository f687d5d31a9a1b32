"""The largest arrays that a compiled program makes: where to look when a step does not fit."""

import dataclasses
import re

from mm01_jax.plan.hlo.text import FREE, Program, sizes

_SOURCE = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Made:
    """An array in main memory. shape: as HLO writes it. source: the traced operation it comes from."""

    bytes: int
    shape: str
    source: str


def largest_arrays(program: Program, most: int) -> list[Made]:
    """The largest arrays, one of each shape. They need not live at the same time."""
    by_shape: dict[str, Made] = {}
    for name, instructions in program.computations.items():
        if name in program.inlined or not program.times[name]:
            continue
        for instruction in instructions:
            if instruction.opcode in FREE or instruction.opcode.endswith(("-start", "-done")):
                continue
            source = _SOURCE.search(instruction.rest)
            where = "/".join(source[1].split("/")[-2:]) if source else instruction.opcode
            for shape in re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", instruction.shape):
                (size,) = sizes(shape, main_memory_only=True)
                bare = shape.partition("{")[0]
                by_shape.setdefault(bare, Made(size, bare, where))
    return sorted(by_shape.values(), key=lambda made: -made.bytes)[:most]
