"""What the engine remembers of prompts and answers: `prefix.py` filled from slots, and slots filled from it.

An answer was made by decode, whose arithmetic is not prefill's: a conversation that goes on would get other bits from
its states than from cold. So a finished request is taken in again, from the last grid point of its prompt on, when
nobody waits: a piece at a time while others decode.
"""

from collections.abc import Sequence

import numpy as np

from mm01_jax.inference import engine_pieces as pieces
from mm01_jax.inference.engine_arrays import to_devices, to_host
from mm01_jax.inference.engine_devices import Devices
from mm01_jax.inference.engine_request import Request
from mm01_jax.inference.engine_schedule import Job
from mm01_jax.inference.prefix import Prefix
from mm01_jax.inference.prefix_tree import pieces_of


class Memory:
    """snapshots: states are kept after every so many pieces of a prompt, at its last grid point, and where prompts
    part. Pages lie at grid points from a row's begin on: a request with a `place` finds nothing and leaves nothing.
    """

    def __init__(self, devices: Devices, prefix: Prefix, snapshots: int):
        self.prefix = prefix
        self._devices, self._sizes, self._every = devices, devices.sizes, snapshots * devices.sizes.grid

    def begins(self, job: Job, before: Sequence[Job]) -> bool:
        """Whether a job takes in its prompt now: with what is known of it, and not while one of `before` takes in the
        same. Who comes together with others then finds what the first of them leaves.
        """
        if job.looked:
            return True
        if any(self._takes_in_for(job, other) for other in before):
            return False
        job.looked = True
        if not job.taken:
            self._restore(job)
        return True

    def _takes_in_for(self, job: Job, other: Job) -> bool:
        """Whether the next piece of the other's prompt is one of the job's, which can begin behind it."""
        (asked, first), grid = (other.request, other.taken), self._sizes.grid
        if not asked.remember or asked.place or asked.content != job.request.content or job.request.wants_whole:
            return False
        if first + grid >= len(job.prompt) or not np.array_equal(
            job.prompt[: first + grid], other.prompt[: first + grid]
        ):
            return False
        parts = [
            (one.prompt[first : first + grid], _marks(one), pieces.rest_of(one, self._sizes)) for one in (job, other)
        ]
        mine, its = (
            pieces_of(part, None if seen is None else seen[first : first + grid], grid, rest, first)
            for part, seen, rest in parts
        )
        return mine == its

    def _restore(self, job: Job) -> None:
        """Puts what is known of a prompt into the job's slot, which is empty."""
        if job.request.wants_whole is not None:
            job.result.miss = job.request.wants_whole
            return
        grid = self._sizes.grid
        asked, rest = (job.request.content, job.prompt, _marks(job)), pieces.rest_of(job, self._sizes)
        found = self.prefix.find(*asked, rest=rest, counted=not job.background)
        self._devices.put_pages(job.slot, found.pages)
        job.taken = len(found.pages) * grid
        if job.taken:
            self._devices.put_state(job.slot, found.state, job.taken)
        job.result.cached, job.result.miss = job.taken, found.miss
        job.branch = found.known * grid

    def every(self, job: Job) -> int | None:
        """After how many tokens of a job states are kept; None: of none."""
        return self._every if job.request.remember else None

    def store(self, job: Job) -> None:
        """Keeps what the job's slot has, where that is at a grid point."""
        grid, states = self._sizes.grid, []
        if job.request.remember and not job.request.place and pieces.is_kept(job, self._sizes, self._every):

            def page(number: int) -> tuple:
                page, states[:] = self._devices.get_piece(job.slot, number * grid)
                return page

            job.node = self.prefix.put(
                job.request.content,
                job.prompt[: job.taken],
                page,
                lambda: tuple(states) or self._devices.get_piece(job.slot, 0)[1],
                _marks(job, job.taken),
                rest=pieces.rest_of(job, self._sizes),
                behind=job.node,
            )

    def again(self, job: Job) -> Job | None:
        """A job that takes in the whole pieces of a finished prompt and its answer; None where they are known."""
        if not job.request.remember:
            return None
        tokens = np.concatenate([job.prompt, np.array(job.result.tokens, np.int32)])
        tokens = tokens[: len(tokens) // self._sizes.grid * self._sizes.grid]
        asked, rest = (job.request.content, tokens, _marks(job, len(tokens))), pieces.rest(len(tokens), self._sizes)
        known = not len(tokens) or self.prefix.has(*asked, rest=rest)
        if known or job.request.place:
            return None
        return Job(job.id, Request(prompt=tokens, content=job.request.content), tokens, background=True, seen=job.seen)


def _marks(job: Job, count: int | None = None) -> np.ndarray | None:
    """What is seen at the first tokens of a prompt and its answer."""
    return None if job.seen is None else job.seen.marks_of(len(job.prompt) if count is None else count)


def remembering(
    devices: Devices, *, prefix_bytes: int, host_bytes: int, path_states: int, snapshots: int
) -> Memory | None:
    """A memory of so many bytes (`Engine` says what the others are); None of 0."""
    if not prefix_bytes:
        return None
    devices.compile_memory()
    limits = {"host_budget": host_bytes, "path_states": path_states}
    prefix = Prefix(devices.sizes.grid, prefix_bytes, **limits, to_host=to_host, to_devices=to_devices)
    return Memory(devices, prefix, snapshots)
