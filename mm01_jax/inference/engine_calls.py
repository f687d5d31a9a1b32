"""Calls of decode as the host begins them: the next one before it has read what the last one drew.

So the devices work while the host reads. They know which rows have ended (`Slots.left_B`); what a call draws of a row
that ended by its text, which the host alone knows, is never read.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mm01_jax.inference import masks
from mm01_jax.inference.engine_decode import Drawn, how_all
from mm01_jax.inference.engine_devices import Devices
from mm01_jax.inference.engine_schedule import Job, Schedule
from mm01_jax.inference.engine_turns import turn_of


class Call(NamedTuple):
    """A call that has begun: jobs with the slots that they had then, its steps, what it draws."""

    jobs: tuple[tuple[Job, int], ...]
    count: int
    drawn: Drawn

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for what it draws."""
        return any(job.result.finish is None for job, _ in self.jobs)


def begin(schedule: Schedule, before: Sequence[Call], devices: Devices, ask: masks.Ask) -> tuple[list[Call], list[Job]]:
    """(the calls, none where nobody decodes; jobs whose hook lets them say nothing).

    Args:
      before: calls that have not been read yet.
    """
    drawn = {job: call.count for call in before for job, _ in call.jobs}  # at least, of who goes on
    left = {job: job.left - drawn.get(job, 0) for job in schedule.running() if job.decodes}
    slots = [job if left.get(job, 0) > 0 else None for job in schedule.jobs]
    steps = devices.sizes.steps
    if not all(job.decodes for job in schedule.running()):  # others wait for their prompts
        steps = max(1, steps // 4)
    if not any(drawn.get(job) or job.result.tokens for job in left):  # a first token is not held back for others
        steps = 1
    calls, silent = [], []
    for group in _groups(slots, devices):
        turn, free, mute = turn_of(group, devices.allowed, ask)
        silent += mute
        jobs = tuple((job, slot) for slot, job in enumerate(group) if job is not None and job not in mute)
        if not jobs:
            continue
        count = min(steps, steps if free is None else free, max(left[job] for job, _ in jobs))
        if devices.ringed and turn.mask_BW is None:
            count = devices.sizes.steps
        how = how_all(job.request.sampling for job, _ in jobs) if turn.mask_BW is None else None
        calls.append(Call(jobs, count, devices.decode(turn, count=count, how=how)))
    return calls, silent


def read(calls: list[Call], count: int, devices: Devices) -> Iterator[tuple[Job, int, Drawn]]:
    """(job, its slot, what was drawn) of who goes on, of the first `count` calls. A call leaves the list when the wait
    for it is over: who interrupts that, as Ctrl-C does, finds it there the next time.
    """
    for _ in range(count):
        drawn = devices.read(calls[0].drawn, calls[0].count)
        for job, slot in calls.pop(0).jobs:
            if job.result.finish is None:
                yield job, slot, drawn


def _groups(slots: list[Job | None], devices: Devices) -> list[list[Job | None]]:
    """Whom one call decodes: all; of devices that are `ringed` those without a hook, and those with one."""
    if not devices.ringed:
        return [slots]
    has_hook = [job is not None and job.request.mask is not None for job in slots]
    return [
        [job if has is which else None for job, has in zip(slots, has_hook, strict=True)] for which in (False, True)
    ]
