"""How much of a step its messages hold up: kernels of messages and of other work on each device, off a profile.

    messages    some message runs                        |   nccl   |      |  nccl  |
    computing   something else runs                  |  work  |        | work |
    exposed     a message runs and nothing else               |xx|              |xxx|
    idle        nothing runs                                       |ii|

A message's kernel also waits for its peer. A profile knows no parts of a CUDA graph: the program is compiled without.
"""

import pathlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mm01_jax import scopes

# NCCL's kernels, copies between GPUs, and TPUs' instructions.
_MESSAGE = re.compile(
    r"nccl|MemcpyP2P|\b(all-(gather|reduce|to-all)|reduce-scatter|collective-permute|ragged-all-to-all)"
)


class Event(NamedTuple):
    """One kernel on one device, in seconds."""

    device: str
    name: str
    instruction: str
    start: float
    seconds: float

    @property
    def is_message(self) -> bool:
        return bool(_MESSAGE.search(self.name) or _MESSAGE.search(self.instruction))


class Exposure(NamedTuple):
    """Seconds of the profile, the mean over devices; whole: from the first kernel's start to the last one's end."""

    whole: float
    computing: float
    messages: float
    exposed: float
    idle: float


def read(folder: pathlib.Path | str) -> list[Event]:
    """The kernels of the newest trace in a folder of `scopes.traced`."""
    return [Event(*event) for event in scopes.timeline(folder)]


def exposure(events: Iterable[Event]) -> Exposure:
    """Raises ValueError where no device ran anything."""
    by_device: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_device[event.device].append(event)
    if not by_device:
        raise ValueError("the profile has no kernel of a device")
    found = [_of_device(own) for own in by_device.values()]
    return Exposure(*(sum(values) / len(found) for values in zip(*found, strict=True)))


def exposed_by(events: Iterable[Event], label) -> dict[str, float]:
    """Exposed seconds of each `label(event)`, the mean over devices; where two messages run, the earlier one's."""
    by_device: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_device[event.device].append(event)
    seconds: dict[str, float] = defaultdict(float)
    for own in by_device.values():
        taken = list(_union(event for event in own if not event.is_message))
        for event in sorted((event for event in own if event.is_message), key=lambda event: event.start):
            span = (event.start, event.start + event.seconds)
            seconds[label(event)] += (span[1] - span[0] - _common([span], taken)) / len(by_device)
            taken = list(_union_of([*taken, span]))
    return dict(seconds)


def _of_device(events: list[Event]) -> Exposure:
    work = list(_union(event for event in events if not event.is_message))
    messages = list(_union(event for event in events if event.is_message))
    whole = max(event.start + event.seconds for event in events) - min(event.start for event in events)
    computing, sent, both = _length(work), _length(messages), _common(work, messages)
    return Exposure(whole, computing, sent, sent - both, whole - computing - sent + both)


def _union(events: Iterable[Event]) -> Iterator[tuple[float, float]]:
    return _union_of((event.start, event.start + event.seconds) for event in events)


def _union_of(spans: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Spans that touch or overlap joined, in order."""
    begin = end = None
    for start, stop in sorted(spans):
        if end is None or start > end:
            if end is not None:
                yield begin, end
            begin, end = start, stop
        end = max(end, stop)
    if end is not None:
        yield begin, end


def _length(spans: list[tuple[float, float]]) -> float:
    return sum(stop - start for start, stop in spans)


def _common(one: list[tuple[float, float]], other: list[tuple[float, float]]) -> float:
    """Length of what two lists of disjoint spans, in order, have in common."""
    total, i, j = 0.0, 0, 0
    while i < len(one) and j < len(other):
        total += max(0.0, min(one[i][1], other[j][1]) - max(one[i][0], other[j][0]))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return total
