"""Where prompts are cut, which follows from their tokens alone: from cuts follow bits.

Of an engine with `wide` > 1 a block is so many pieces, counted from the prompt's begin on, and one product. Blocks that
end before the prompt's last token are taken in whole, whatever else runs; the rest piece by piece. A piece of a block
and the same tokens as a piece of a rest have other bits: `prefix.py` is told where the rest begins.
"""

from collections.abc import Sequence

from mm01_jax.inference.engine_schedule import Job
from mm01_jax.inference.engine_sizes import Sizes


def rest(count: int, sizes: Sizes) -> int | None:
    """The token from which on a prompt with so many tokens before its last is taken in piece by piece; None of an
    engine whose pieces are all alike."""
    block = sizes.wide * sizes.grid
    return count // block * block if sizes.wide > 1 else None


def rest_of(job: Job, sizes: Sizes) -> int | None:
    """Of a job's prompt; what the background takes in is the begin of longer ones, its last token is like others."""
    return rest(len(job.prompt) - (not job.background), sizes)


def least(job: Job, sizes: Sizes) -> int:
    """Tokens that are taken in at once, at least: a piece or a block."""
    return sizes.grid * (sizes.wide if job.taken < (rest_of(job, sizes) or 0) else 1)


def alike(jobs: Sequence[Job], sizes: Sizes) -> tuple[list[Job], int]:
    """(those that are taken in together with the first of them, blocks with blocks or pieces with pieces; `least`)."""
    first = least(min(jobs, key=lambda job: (job.background, job.rank)), sizes)
    return [job for job in jobs if least(job, sizes) == first], first


def cut(job: Job, most: int, sizes: Sizes, every: int | None) -> int:
    """How many of the next `most` tokens are taken in, `least` of them at least.

    Args:
      every: states are kept after so many tokens; None of a job of which nothing is kept.
    """
    length, grid, block = len(job.prompt), sizes.grid, sizes.wide * sizes.grid
    if (blocks := (rest_of(job, sizes) or 0) - job.taken) > 0:
        return block if every is not None else max(1, min(most, blocks) // block) * block
    most = min(most, (sizes.wide - 1) * grid) if sizes.wide > 1 else most  # so many pieces would be a block
    if every is None:
        return min(most, length - job.taken)
    last = (length if job.background else length - 1) // grid * grid
    stops = [(job.taken // every + 1) * every, last, job.branch, job.taken + most, length]
    return min(stop for stop in stops if stop > job.taken) - job.taken


def is_kept(job: Job, sizes: Sizes, every: int) -> bool:
    """Whether states are kept of what a job has taken in."""
    if not job.taken or job.taken % sizes.grid:
        return False
    block, end = sizes.wide * sizes.grid, rest_of(job, sizes)
    if end is None or job.taken > end:
        return True
    return job.taken // every > (job.taken - block) // every or job.taken in (end, job.branch // block * block)
