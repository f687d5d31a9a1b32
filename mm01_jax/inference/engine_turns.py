"""What the host tells a call of the devices: tokens of prompts; whose turn it is to decode, and what they may say."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mm01_jax.inference import masks
from mm01_jax.inference.engine_decode import Turn
from mm01_jax.inference.engine_programs import Sizes
from mm01_jax.inference.engine_schedule import Job


class Work(NamedTuple):
    """Tokens that a slot takes in. following: the prompt's next one; says: whether it wants their log-probabilities."""

    slot: int
    tokens: np.ndarray
    following: int = 0
    says: bool = False


def work_of(job: Job, count: int) -> Work:
    """The next `count` tokens of a job's prompt."""
    end = min(job.taken + count, len(job.prompt))
    following = int(job.prompt[end]) if end < len(job.prompt) else 0
    return Work(job.slot, job.prompt[job.taken : end], following, job.request.prompt_logprobs is not None)


def turn_of(slots: Sequence[Job | None], sizes: Sizes, allowed_V: np.ndarray) -> tuple[Turn, int, list[Job]]:
    """(the turn in NumPy arrays, steps until a hook has to be asked again, jobs whose hook lets them say nothing).

    Args:
      slots: the job of each that decodes. allowed_V: bool, ids that may ever be chosen.
    """
    count = len(slots)
    turn = Turn(
        active_B=np.zeros(count, bool),
        left_B=np.zeros(count, np.int32),
        stop_BK=np.full((count, sizes.stop_ids), -1, np.int32),
        guesses_B=np.zeros(count, bool),
        mask_BW=np.full((count, masks.num_words(len(allowed_V))), 0xFFFFFFFF, np.uint32),
    )
    steps, silent = sizes.steps, []
    for row, job in enumerate(slots):
        if job is None:
            continue
        if job.request.mask is not None:
            free = _ask(job, turn.mask_BW[row], allowed_V)
            if free is None:
                silent.append(job)
                continue
            steps = min(steps, free)
        turn.active_B[row], turn.left_B[row] = True, job.left
        turn.stop_BK[row, : len(job.request.stop_ids)] = job.request.stop_ids
        turn.guesses_B[row] = job.request.guesses and job.request.mask is None
    return turn, steps, silent


def _ask(job: Job, words_W: np.ndarray, allowed_V: np.ndarray) -> int | None:
    """Tokens that a job may draw before its hook is asked again, its mask put into `words`; None: it may say nothing,
    and its result says why."""
    try:
        words, free = masks.ask(job.request.mask, job.result.tokens, allowed_V)
    except masks.DeadEnd:
        job.result.error = "mask: no id that may be chosen is allowed"
    except Exception as error:  # a stranger's program; others go on
        said = str(error) or type(error).__name__
        job.result.error = said if said.startswith("mask: ") else f"mask: {said}"
    else:
        if words is not None:
            words_W[:] = words
        return free
    return None
