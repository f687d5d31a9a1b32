"""Calls of decode as the host begins them: the next one before it has read what the last one drew.

So the devices work while the host reads. They know which rows have ended (`Slots.left_B`); what a call draws of a row
that ended by its text, which the host alone knows, is never read.
"""

from typing import NamedTuple

from mm01_jax.inference import masks
from mm01_jax.inference.engine_decode import Drawn
from mm01_jax.inference.engine_devices import Devices
from mm01_jax.inference.engine_schedule import Job, Schedule
from mm01_jax.inference.engine_turns import turn_of
from mm01_jax.inference.sampling import are_plain


class Call(NamedTuple):
    """A call that has begun: jobs with the slots that they had then, its steps, what it draws."""

    jobs: tuple[tuple[Job, int], ...]
    count: int
    drawn: Drawn

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for what it draws."""
        return all(job.result.finish is not None for job, _ in self.jobs)


def begin(schedule: Schedule, before: Call | None, devices: Devices, ask: masks.Ask) -> tuple[Call | None, list[Job]]:
    """(the call, None where nobody decodes; jobs whose hook lets them say nothing).

    Args:
      before: the call that has not been read yet.
    """
    drawn = {} if before is None else {job: before.count for job, _ in before.jobs}  # at least, of who goes on
    left = {job: job.left - drawn.get(job, 0) for job in schedule.running() if job.decodes}
    slots = [job if left.get(job, 0) > 0 else None for job in schedule.jobs]
    turn, free, silent = turn_of(slots, devices.allowed, ask)
    jobs = tuple((job, slot) for slot, job in enumerate(slots) if job is not None and job not in silent)
    if not jobs:
        return None, silent
    steps = devices.sizes.steps
    if not all(job.decodes for job in schedule.running()):  # others wait for their prompts
        steps = max(1, steps // 4)
    count = min(steps, steps if free is None else free, max(left[job] for job, _ in jobs))
    plain = turn.mask_BW is None and are_plain([job.request.sampling for job, _ in jobs])
    return Call(jobs, count, devices.decode(turn, count=count, plain=plain)), silent
