"""Words of two, `first-second`: millions of them, in the order of the alphabet, of which none is written out."""

import bisect
import itertools
from collections.abc import Sequence


class Pairs(Sequence):
    """Every `first-second` once, sorted.

    Firsts that begin with another one and "-" are sorted together with it; of all others the order of the firsts is
    that of their pairs.
    """

    def __init__(self, firsts: Sequence[str], seconds: Sequence[str]):
        self._seconds = sorted(set(seconds))
        groups: list[list[str]] = []
        for begin in sorted({f"{first}-" for first in firsts}):
            if groups and begin.startswith(groups[-1][0]):
                groups[-1].append(begin)
            else:
                groups.append([begin])
        self._groups = [begins[0] if len(begins) == 1 else self._merged(begins) for begins in groups]
        sizes = [len(self._seconds) if isinstance(group, str) else len(group) for group in self._groups]
        self._starts = [0, *itertools.accumulate(sizes)]

    def _merged(self, begins: list[str]) -> list[str]:
        return sorted({begin + second for begin in begins for second in self._seconds})

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._starts, index) - 1
        group, place = self._groups[number], index - self._starts[number]
        return group + self._seconds[place] if isinstance(group, str) else group[place]
