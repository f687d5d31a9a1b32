"""Whose turn it is: which requests have a slot, which take in their prompt, which draw tokens. All on the host.

Decisions follow from what was asked in which order, never from a clock or from chance: processes that are asked the
same do the same.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mm01_jax.inference.engine_images import Seen
from mm01_jax.inference.engine_programs import Slots
from mm01_jax.inference.engine_request import Request, Result
from mm01_jax.inference.prefix_tree import Node
from mm01_jax.inference.stops import TextStream

MOST_LATER = 4  # jobs of the background for each slot; what is more is never remembered


@dataclasses.dataclass(eq=False)
class Job:
    """A request on its way.

    taken: tokens of the prompt that its slot, or `row`, has taken in. row: all of its slot while it has none: it was
    preempted (the row is in the hosts' memory), or goes on from another's prompt. text: reads the answer, where the
    engine has a tokenizer. waits_for: the job whose prompt it goes on from. branch: tokens of the prompt after which
    another was known to part. routed: the experts of its tokens so far, arrays (n, L, A) one after another. background:
    asked by nobody, it takes in what is to be remembered. looked: whether what is remembered of its prompt was looked
    for. node: of what is remembered, the last piece that it left.
    """

    id: int
    request: Request
    prompt: np.ndarray
    result: Result = dataclasses.field(default_factory=Result)
    slot: int | None = None
    taken: int = 0
    row: Slots | None = None
    text: TextStream | None = None
    waits_for: "Job | None" = None
    branch: int = 0
    routed: list[np.ndarray] = dataclasses.field(default_factory=list)
    background: bool = False
    looked: bool = False
    seen: Seen | None = None
    node: Node | None = None

    @property
    def decodes(self) -> bool:
        return self.taken == len(self.prompt) and not self.background

    @property
    def left(self) -> int:
        """Tokens that may come yet."""
        return self.request.max_tokens - len(self.result.tokens)

    @property
    def rank(self) -> tuple[int, int]:
        """The lower, the sooner."""
        return -self.request.priority, self.id


def begin_at_once(job: Job, before: Sequence[Job]) -> bool:
    return True


class Schedule:
    """Slots and who has them; `groups` of equal size, each of which takes in tokens of `lanes` slots at a time.

    begins: whether a job takes in its prompt now, those of its group that go before it still taking in theirs; it may
    find some of its own there.
    """

    def __init__(
        self, num_slots: int, groups: int, lanes: int = 1, begins: Callable[[Job, Sequence[Job]], bool] = begin_at_once
    ):
        self._begins = begins
        self.jobs: list[Job | None] = [None] * num_slots
        self.waiting: list[Job] = []
        self.later: list[Job] = []  # those of the background
        self._per_group, self._lanes = num_slots // groups, lanes

    def running(self) -> list[Job]:
        """In the order of their slots."""
        return [job for job in self.jobs if job is not None]

    @property
    def is_empty(self) -> bool:
        """Whether nobody has a slot or waits for one."""
        return not (self.waiting or self.later or self.running())

    def next(self) -> Job | None:
        """The first of those who wait and could begin; of the background only when nobody waits."""
        ready = [job for job in self.waiting if job.waits_for is None]
        if not self.waiting and self.later and self.free_slot() is not None:
            return self.later[0]
        return min(ready, key=lambda job: job.rank, default=None)

    def who_wait_for(self, job: Job) -> list[Job]:
        """Those that go on from its prompt."""
        return [other for other in self.waiting if other.waits_for is job]

    def free_slot(self) -> int | None:
        """One of the group that has least to take in."""
        load = [0] * (len(self.jobs) // self._per_group)
        for job in self.running():
            load[job.slot // self._per_group] += len(job.prompt) - job.taken + 1
        free = [slot for slot, job in enumerate(self.jobs) if job is None]
        return min(free, key=lambda slot: (load[slot // self._per_group], slot), default=None)

    def to_preempt(self, job: Job) -> Job | None:
        """Who has to give its slot to `job`: one of the background, or the last of those of lower priority."""
        lower = [other for other in self.running() if other.background or other.request.priority < job.request.priority]
        return max(lower, key=lambda other: (other.background, other.rank), default=None)

    def place(self, job: Job, slot: int) -> None:
        (self.later if job.background else self.waiting).remove(job)
        self.jobs[slot], job.slot = job, slot

    def wait(self, job: Job) -> None:
        """A job, new or without its slot again, waits; one of the background begins anew."""
        if job.background:
            job.taken, job.looked = 0, False
            self.later = [job, *self.later][: MOST_LATER * len(self.jobs)]
        else:
            self.waiting.append(job)

    def remove(self, job: Job) -> int | None:
        """Takes a job out; the slot that it had."""
        slot, job.slot = job.slot, None
        if slot is None:
            self.waiting.remove(job)
        else:
            self.jobs[slot] = None
        return slot

    def to_take_in(self, most: int | None) -> Iterator[Job]:
        """In each group the first ones whose prompt is not taken in; most: of those with so many tokens left at most.
        The background waits until nobody else does."""
        for first in range(0, len(self.jobs), self._per_group):
            group = self.jobs[first : first + self._per_group]
            begun = [job for job in group if job is not None and job.taken < len(job.prompt)]
            asked = [job for job in begun if not job.background] or begun
            before, found = [], []
            for job in sorted(asked, key=lambda job: job.rank):
                if len(found) == self._lanes:
                    break
                if self._begins(job, before) and (most is None or len(job.prompt) - job.taken <= most):
                    found.append(job)
                before.append(job)
            yield from found
