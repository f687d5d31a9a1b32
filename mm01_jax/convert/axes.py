"""One tensor between PyTorch's axes and ours: '(heads three head_dim) embed' <-> 'embed heads three head_dim'.

Parentheses merge axes into one dim, first axis outermost. Only reshape and transpose happen, so both ways are exact.
"""

import functools
import math
import re
from collections.abc import Mapping

import numpy as np

_STRIP = 16  # rows of a strip: 16 two-byte elements are a cache line of the output


@functools.cache
def parse(text: str) -> tuple[tuple[str, ...], ...]:
    """The axes of each dim: 'a (b c)' -> (('a',), ('b', 'c'))."""
    return tuple(tuple(dim.strip("()").split()) for dim in re.findall(r"\([^)]*\)|\S+", text))


def shape(text: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a tensor with these axes."""
    return tuple(math.prod(sizes[axis] for axis in dim) for dim in parse(text))


def rearrange(x: np.ndarray, have: str, want: str, sizes: Mapping[str, int]) -> np.ndarray:
    """`x`, whose axes are `have`, as a contiguous array with axes `want`; `x` itself if nothing moves."""
    old = [axis for dim in parse(have) for axis in dim]
    new = [axis for dim in parse(want) for axis in dim]
    runs = _unmoved_runs([old.index(axis) for axis in new])
    parts = x.reshape([math.prod(sizes[old[i]] for i in run) for run in sorted(runs)])
    order = [sorted(runs).index(run) for run in runs]
    return _contiguous(parts, order).reshape(shape(want, sizes))


def _unmoved_runs(order: list[int]) -> list[tuple[int, ...]]:
    """The permutation with neighbours that stay neighbours as one: [1, 2, 0] -> [(1, 2), (0,)]."""
    runs: list[tuple[int, ...]] = []
    for axis in order:
        if runs and axis == runs[-1][-1] + 1:
            runs[-1] += (axis,)
        else:
            runs.append((axis,))
    return runs


def _contiguous(x: np.ndarray, order: list[int]) -> np.ndarray:
    if order == sorted(order):
        return x
    if order == [1, 0]:
        out = np.empty(x.shape[::-1], x.dtype)
        transpose_into(out, x)
        return out
    return np.ascontiguousarray(x.transpose(order))


def transpose_into(out: np.ndarray, x: np.ndarray) -> None:
    """out = x.T for matrices, in strips: 9216 x 6144 two-byte elements take a fifth of the time of out[:] = x.T."""
    if x.dtype.itemsize == 2:  # bfloat16 has no fast path in NumPy, 16-bit words do
        out, x = out.view(np.uint16), x.view(np.uint16)
    for start in range(0, len(x), _STRIP):
        out[:, start : start + _STRIP] = x[start : start + _STRIP].T


def enclosing(bounds: tuple[slice, ...], have: str, want: str, sizes: Mapping[str, int]) -> tuple[slice, ...]:
    """The smallest box of a tensor with axes `want` that holds the box `bounds` of one with axes `have`.

    `have` has one axis a dim. Of merged dims the outermost axis is cut and the inner ones are taken whole.
    """
    cut = dict(zip((dim[0] for dim in parse(have)), bounds, strict=True))
    inner = [math.prod(sizes[axis] for axis in dim[1:]) for dim in parse(want)]
    return tuple(slice(cut[dim[0]].start * n, cut[dim[0]].stop * n) for dim, n in zip(parse(want), inner, strict=True))


def sizes_inside(sizes: Mapping[str, int], bounds: tuple[slice, ...], have: str, want: str) -> dict[str, int]:
    """Sizes of the axes inside the box that `enclosing` gives: cut outermost axes, whole inner ones."""
    cut = dict(zip((dim[0] for dim in parse(have)), bounds, strict=True))
    outer = {dim[0]: cut[dim[0]].stop - cut[dim[0]].start for dim in parse(want)}
    return {**sizes, **outer}
