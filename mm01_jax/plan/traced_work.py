"""What a traced step computes and sends, counted from its jaxpr: the loops that XLA's own analysis counts once count
as often as they run.

Outside `shard_map` shapes are global and the work is taken to divide over all chips; inside they are one chip's.
Recomputation, masked blocks and padded buffers count: this is what the chip does, not what the mathematics needs.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from pallas_kernels.declared import flops_of as declared_flops

# Primitive -> the name that HLO has for it.
_COLLECTIVES = {
    "psum": "all-reduce",
    "psum_invariant": "all-reduce",
    "pmax": "all-reduce",
    "pmin": "all-reduce",
    "all_gather": "all-gather",
    "all_gather_invariant": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_to_all": "all-to-all",
    "ragged_all_to_all": "ragged-all-to-all",
    "ppermute": "collective-permute",
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of message: over which mesh axes, and the bytes of the larger of its two sides on one chip."""

    kind: str
    axes: tuple[str, ...]
    bytes: int


@dataclasses.dataclass
class Counts:
    """Of one call on one chip. collectives: those that the program states; XLA adds those of its own sharding.

    flops: matrix multiplications, 2 a multiply-add. by_name: the same, by the primitive that does them.
    """

    flops: float = 0.0
    by_name: Counter = dataclasses.field(default_factory=Counter)
    collectives: Counter = dataclasses.field(default_factory=Counter)
    whiles: int = 0

    def add(self, name: str, flops: float) -> None:
        self.flops += flops
        self.by_name[name] += flops


class Assumed(NamedTuple):
    """What depends on data, and so is not in a trace.

    balanced_rows: rows of one grouped matmul when every expert is chosen equally often. A grouped matmul that skips
      unused rows counts these; None counts whole buffers.
    branch_share: share of their runs in which conditionals take their larger branch (attention skips what nothing
      sees).
    """

    balanced_rows: int | None = None
    branch_share: float = 1.0


WHOLE = Assumed()


def count(jaxpr, sizes: Mapping[str, int], assumed: Assumed = WHOLE) -> Counts:
    """Counts of a traced function's jaxpr. sizes: mesh axis -> size."""
    counts = Counts()
    _walk(jaxpr, 1.0 / math.prod(sizes.values()), counts, sizes, assumed)
    return counts


def _walk(jaxpr, times: float, counts: Counts, sizes: Mapping[str, int], assumed: Assumed) -> None:
    """Adds to `counts` what one chip does in `times` runs of the jaxpr. On 4 chips, with a branch_share of 1/2:

    dot               1/4 of its flops: outside `shard_map` its shapes are global
    scan, length 3    its body runs 1/4 * 3 times
      shard_map       1/4 * 3 * 4 = 3 times: every chip does what is inside
        dot           3 times its flops: inside, its shapes are one chip's
        cond          3 * 1/2 times its larger branch
    """
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            counts.add(name, times * _dot_flops(eqn))
        elif name in ("ragged_dot", "ragged_dot_general"):
            counts.add(name, times * _ragged_flops(eqn, assumed.balanced_rows))
        elif (declared := declared_flops(eqn, assumed.balanced_rows)) is not None:
            counts.add("declared", times * declared)
        elif name in _COLLECTIVES:
            _collective(eqn, times, counts, sizes)
        elif name == "cond":
            branches = [Counts() for _ in eqn.params["branches"]]
            for branch, branch_counts in zip(eqn.params["branches"], branches, strict=True):
                _walk(_open(branch), times * assumed.branch_share, branch_counts, sizes, assumed)
            _merge(counts, max(branches, key=lambda branch_counts: branch_counts.flops))
        else:
            counts.whiles += name == "while"
            for inner in _inner(eqn):
                _walk(inner, times * _repeats(eqn, sizes), counts, sizes, assumed)


def _repeats(eqn, sizes: Mapping[str, int]) -> float:
    if eqn.primitive.name == "scan":
        return eqn.params["length"]
    if eqn.primitive.name == "shard_map":
        return math.prod(sizes.values())  # every chip does what is inside
    if eqn.primitive.name == "pallas_call":
        return math.prod(eqn.params["grid_mapping"].grid)
    return 1


def _inner(eqn) -> Iterator:
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if (opened := _open(item)) is not None:
                yield opened


def _open(value):
    """The jaxpr in a parameter, closed or not; None when it is none."""
    value = getattr(value, "jaxpr", value)
    return value if hasattr(value, "eqns") else None


def _dot_flops(eqn) -> float:
    (contract, _), _ = eqn.params["dimension_numbers"]
    lhs = eqn.invars[0].aval.shape
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[axis] for axis in contract)


def _ragged_flops(eqn, balanced_rows: int | None) -> float:
    """A row meets one expert's matrix, forward and in both gradients: 2 D F a row."""
    lhs, rhs = (var.aval.shape for var in eqn.invars[:2])
    rows = lhs[0] if balanced_rows is None else min(lhs[0], balanced_rows)
    return 2.0 * rows * math.prod(lhs[1:]) * (math.prod(rhs[1:]) if len(rhs) == 2 else _width(eqn, lhs))


def _width(eqn, lhs: tuple[int, ...]) -> int:
    """F of rows (R, D) times matrices (E, D, F), or (E, F, D) when the gradient contracts the last dim."""
    return math.prod(eqn.invars[1].aval.shape[1:]) // math.prod(lhs[1:])


def _collective(eqn, times: float, counts: Counts, sizes: Mapping[str, int]) -> None:
    named = eqn.params.get("axes", eqn.params.get("axis_name"))
    named = named if isinstance(named, tuple) else (named,)
    axes = tuple(axis for axis in sizes if axis in named and sizes[axis] > 1)
    if not axes:
        return
    kind = _COLLECTIVES[eqn.primitive.name]
    for before, after in zip(eqn.invars, eqn.outvars, strict=False):
        size = max(_bytes(before.aval), _bytes(after.aval))
        counts.collectives[Collective(kind, axes, size)] += round(times)


def _bytes(aval) -> int:
    return math.prod(aval.shape) * np.dtype(aval.dtype).itemsize


def _merge(counts: Counts, other: Counts) -> None:
    counts.flops += other.flops
    counts.by_name += other.by_name
    counts.collectives += other.collectives
    counts.whiles += other.whiles
