"""Reading a compiled program: its collectives with the mesh axes they run over, and the shapes it holds."""

import itertools
import re
from collections.abc import Iterator

import numpy as np

from mm01_jax.config import MESH_AXES

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_INSTRUCTION = re.compile(rf"= (?P<shape>\S.*?) (?P<kind>{'|'.join(KINDS)})(?:-start)?\((?P<rest>.*)$", re.MULTILINE)


_DIMS = re.compile(r"\w+\[([\d,]*)\]")


def collectives(program: str, mesh_shape: dict[str, int]) -> set[tuple[str, tuple[str, ...]]]:
    """{(kind, mesh axes)} of every collective over more than one device."""
    return {(kind, axes) for kind, axes, _ in _each(program, mesh_shape)}


def summed(program: str, mesh_shape: dict[str, int]) -> set[tuple[int, ...]]:
    """The shape of everything that more than one device sum."""
    found = (shape for kind, _, shape in _each(program, mesh_shape) if kind in ("all-reduce", "reduce-scatter"))
    return {tuple(map(int, filter(None, dims.split(",")))) for shape in found for dims in _DIMS.findall(shape)}


def _each(program: str, mesh_shape: dict[str, int]) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """(kind, mesh axes, shape) of every collective over more than one device."""
    for match in _INSTRUCTION.finditer(program):
        named = re.search(r"replica_groups=mesh\[[^\]]*\] \{(.*?)\}", match["rest"])  # as jax 0.12 writes it
        if named:
            axes = tuple(axis for axis in MESH_AXES if f"'{axis}'" in named[1] and mesh_shape[axis] > 1)
        else:
            axes = _axes(_groups(match["rest"]), mesh_shape)
        if axes:
            yield match["kind"], axes, match["shape"]


def sums(program: str) -> set[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of everything that devices sum, none of it combined with others yet."""
    found = re.findall(r"= (\w+)\[([\d,]*)\]\S* (?:all-reduce|reduce-scatter)\(", program)
    return {(dtype, tuple(map(int, filter(None, dims.split(","))))) for dtype, dims in found}


def shapes(program: str) -> set[tuple[int, ...]]:
    """The shape of every array of the program."""
    return {
        tuple(map(int, dims.split(","))) for dims in re.findall(r"\b(?:f32|bf16|s32|pred|f64)\[([\d,]+)\]", program)
    }


def _groups(rest: str) -> list[list[int]]:
    """Devices that exchange with each other, from any of XLA's notations."""
    if found := re.search(r"source_target_pairs=\{(\{.*?\})\}", rest):
        return [list(map(int, pair.split(","))) for pair in re.findall(r"\{([\d,]+)\}", found[1])]
    if found := re.search(r"replica_groups=\{(\{.*?\})\}", rest):
        return [list(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", found[1])]
    found = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    assert found, f"no replica groups in {rest[:300]}"
    devices = np.arange(int(found[1]) * int(found[2])).reshape(tuple(map(int, found[3].split(","))))
    if found[4]:
        devices = devices.transpose(tuple(map(int, found[4].split(","))))
    return devices.reshape(int(found[1]), int(found[2])).tolist()


def _axes(groups: list[list[int]], mesh_shape: dict[str, int]) -> tuple[str, ...]:
    """The mesh axes along which some members of a group differ."""
    sizes = [mesh_shape[axis] for axis in MESH_AXES]
    places = [[np.unravel_index(device, sizes) for device in group] for group in groups]
    differ = set()
    for group in places:
        for one, other in itertools.pairwise(group):
            differ |= {axis for axis, a, b in zip(MESH_AXES, one, other, strict=True) if a != b}
    return tuple(axis for axis in MESH_AXES if axis in differ)
