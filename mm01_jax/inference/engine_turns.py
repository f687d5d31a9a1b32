"""What the host tells a call of the devices: tokens of prompts; whose turn it is to decode, and what they may say."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mm01_jax.inference import masks
from mm01_jax.inference.engine_decode import Turn
from mm01_jax.inference.engine_images import Seen
from mm01_jax.inference.engine_schedule import Job
from mm01_jax.inference.engine_sizes import Sizes


class Work(NamedTuple):
    """Tokens that a slot takes in. following: the prompt's next one; says: whether it wants their log-probabilities;
    routed: or the experts that they go to; shows: the prompt's images, and the tokens' place in it."""

    slot: int
    tokens: np.ndarray
    following: int = 0
    says: bool = False
    routed: bool = False
    shows: tuple[Seen, int] | None = None


def work_of(job: Job, count: int) -> Work:
    """The next `count` tokens of a job's prompt."""
    end, request = min(job.taken + count, len(job.prompt)), job.request
    following = int(job.prompt[end]) if end < len(job.prompt) else 0
    wants = request.prompt_logprobs is not None, request.routed_experts
    shows = None if job.seen is None else (job.seen, job.taken)
    return Work(job.slot, job.prompt[job.taken : end], following, *wants, shows)


def arrays_of(work: Sequence[Work], sizes: Sizes, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(index, tokens, count) as `engine_programs.Told` has them, of groups of equal size."""
    per_group = sizes.num_slots // groups
    index, count = np.zeros((2, groups), np.int32)
    tokens = np.zeros((groups, sizes.pieces * sizes.grid + 1), np.int32)
    for one in work:
        group, length = one.slot // per_group, len(one.tokens)
        index[group], count[group] = one.slot % per_group, length
        tokens[group, : length + 1] = [*one.tokens, one.following]
    return index, tokens, count


def turn_of(slots: Sequence[Job | None], allowed_V: np.ndarray, ask: masks.Ask) -> tuple[Turn, int | None, list[Job]]:
    """(the turn in NumPy arrays, its mask None where there is none; steps until a hook has to be asked again, None: any
    number; jobs whose hook lets them say nothing).

    Args:
      slots: the job of each that decodes. allowed_V: bool, ids that may ever be chosen. ask: `masks.ask_all`, or what
        asks it elsewhere.
    """
    turn = Turn(may_B=np.zeros(len(slots), bool), guesses_B=np.zeros(len(slots), bool), mask_BW=None)
    masked = [(row, job) for row, job in enumerate(slots) if job is not None and job.request.mask is not None]
    steps, silent = None, []
    for row, job in enumerate(slots):
        if job is not None:
            turn.may_B[row], turn.guesses_B[row] = True, job.request.guesses and job.request.mask is None
    if not masked:
        return turn, steps, silent
    turn = turn._replace(mask_BW=np.full((len(slots), masks.num_words(len(allowed_V))), 0xFFFFFFFF, np.uint32))
    said = ask([(job.request.mask, job.result.tokens) for _, job in masked], allowed_V)
    for (row, job), one in zip(masked, said, strict=True):
        if one.error is not None:
            job.result.error, turn.may_B[row] = one.error, False
            silent.append(job)
            continue
        if one.words is not None:
            turn.mask_BW[row] = one.words
        steps = one.free if steps is None else min(steps, one.free)
    return turn, steps, silent
