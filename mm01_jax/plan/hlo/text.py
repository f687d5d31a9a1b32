"""A compiled program read from its text: computations, their instructions, and how often each one runs.

XLA's own analysis counts the body of a loop once; here a body counts as often as its loop runs.
"""

import dataclasses
import functools
import re
from collections import defaultdict

_ITEM_BITS = {"pred": 8, "token": 0, "opaque": 0}
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ((?:\([^=]*?\)|\S+)) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
# A conditional names its branches in one list, or a true and a false one (GPUs).
_BRANCHES = "branch_computations|true_computation|false_computation"
_CALLS = re.compile(rf"\b(calls|to_apply|body|condition|{_BRANCHES}|called_computations)=(\{{[^}}]*\}}|%?[\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count"?\s*:\s*\{\s*"?n"?\s*:\s*"?(\d+)')

# Instructions that neither compute nor move anything by themselves.
FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "call-start",
    "call-update",
    "call-done",
    "async-update",
}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str  # operands and attributes as they stand
    root: bool

    @property
    def calls(self) -> dict[str, list[str]]:
        """Attribute -> the computations it names."""
        return {key: re.findall(r"[\w.\-]+", value) for key, value in _CALLS.findall(self.rest)}


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name. entry: the one that runs first."""

    computations: dict[str, list[Instruction]]
    entry: str

    @functools.cached_property
    def times(self) -> dict[str, int]:
        """Computation -> how often one call of the program runs it. Every branch of a conditional counts."""
        return self.runs(1)

    def runs(self, branch_share: float) -> dict[str, float]:
        """The same, every branch of a conditional counted `branch_share` times."""
        times: dict[str, float] = defaultdict(int)
        times[self.entry] = 1
        # A computation stands after all that it calls, so callers first is the text backwards.
        for name in reversed(self.computations):
            for instruction in self.computations[name]:
                each = self.trips(instruction) if instruction.opcode == "while" else 1
                each = branch_share if instruction.opcode == "conditional" else each
                for called in instruction.calls.values():
                    for inner in called:
                        times[inner] += times[name] * each
        return times

    @functools.cached_property
    def inlined(self) -> set[str]:
        """Computations that are part of one instruction (fusions, reducers): nothing in them is in memory."""
        return {
            name
            for instructions in self.computations.values()
            for i in instructions
            if i.opcode not in ("call", "call-start", "async-start")
            for key, called in i.calls.items()
            if key in ("calls", "to_apply")
            for name in called
        }

    def trips(self, loop: Instruction) -> int:
        """How often a `while` runs: as the compiler notes it, else the constant its counter is compared with."""
        if noted := _TRIPS.search(loop.rest):
            return int(noted[1])
        condition = self.computations[loop.calls["condition"][0]]
        constants = [re.match(r"(\d+)\)", i.rest) for i in condition if i.opcode == "constant"]
        bounds = [int(number[1]) for number in constants if number]
        return max(bounds) if bounds else 1


def parse(text: str) -> Program:
    """The program of an executable's text (`compiled.as_text()`)."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if current is None or not line.startswith(" "):
            header = _COMPUTATION.match(line)
            current = header[2] if header else None
            if header:
                computations[current] = []
                entry = current if header[1] else entry
        elif instruction := _INSTRUCTION.match(line):
            root, name, shape, opcode, rest = instruction.groups()
            operands = tuple(re.findall(r"%([\w.\-]+)", rest.partition("), ")[0]))
            computations[current].append(Instruction(name, shape, opcode, operands, rest, bool(root)))
    return Program(computations, entry)


def sizes(shape: str, *, main_memory_only: bool = False) -> list[int]:
    """Bytes of every array in a shape's text. `main_memory_only`: 0 for those that live in a core's own memory."""
    array_bytes = []
    for dtype, dims, layout in _SHAPE.findall(shape):
        count = 1
        for dim in dims.split(","):
            count *= int(dim) if dim else 1
        near = main_memory_only and re.search(r"S\([1-9]", layout)
        array_bytes.append(0 if near else count * item_bits(dtype) // 8)
    return array_bytes


def item_bits(dtype: str) -> int:
    """Bits of one element: the number in its name (bf16, s32, f8e4m3), 8 for pred."""
    if dtype in _ITEM_BITS:
        return _ITEM_BITS[dtype]
    number = re.search(r"\d+", dtype)
    return int(number[0]) if number else 0
