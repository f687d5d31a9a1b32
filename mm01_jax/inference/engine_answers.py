"""What a call of decode drew, put into results: tokens up to where an answer ends, what was asked of them, the text."""

from collections.abc import Sequence

import numpy as np

from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.inference.engine_decode import Drawn
from mm01_jax.inference.engine_images import Seen
from mm01_jax.inference.engine_programs import Said
from mm01_jax.inference.engine_request import Request
from mm01_jax.inference.engine_schedule import Job
from mm01_jax.inference.engine_turns import Work
from mm01_jax.inference.stops import Stops, TextStream, stops


def job_of(id: int, request: Request, prompt: np.ndarray, tokenizer: Tokenizer | None, vision) -> Job:
    """A request on its way: what reads its answer as text, in an engine with a tokenizer, and what it shows."""
    seen = None if request.shows is None else Seen(request.shows, vision)
    if tokenizer is None:
        return Job(id, request, prompt, seen=seen)
    ends = Stops(frozenset(int(token) for token in request.stop_ids), stops(request.stop).strings)
    return Job(id, request, prompt, text=TextStream(tokenizer, ends, prompt), seen=seen)


def note(job: Job, row: int, drawn: Drawn) -> tuple[list[int], list[int], str | None]:
    """Puts what was drawn of a job, which had such a row then, into its result.

    A call draws several tokens: those behind a stop string are as if they had never been.

    Returns:
      (the new tokens, their places in `drawn`, how they finish the answer if they do).
    """
    result, wants, tokens = job.result, job.request.logprobs, drawn.tokens[:, row].tolist()
    places = [place for place, token in enumerate(tokens) if token >= 0]
    new = [tokens[place] for place in places]
    count, stopped = _read(job, new)
    places, new = places[:count], new[:count]
    result.tokens += new
    if wants is not None:
        result.logprobs += drawn.logprob[places, row].tolist()
        result.top += _pairs(drawn.top_ids[places, row, :wants], drawn.top_logprobs[places, row, :wants])
    if drawn.logits is not None:
        result.logits += [drawn.logits[n, row].copy() for n in places]  # a view would keep all rows
    if job.request.routed_experts:
        job.routed.append(drawn.routed[places, row])
    return new, places, "stop" if stopped else "length" if job.left == 0 else None


def note_prompt(job: Job, work: Work, row: int, said: Said | None) -> None:
    """Puts what the model says of a prompt's tokens, a row of what it said, into its result: of those that were taken
    in, of which the last says something of the one that follows, if one does."""
    wants, result = job.request.prompt_logprobs, job.result
    if job.request.routed_experts:
        job.routed.append(said.routed[row, : len(work.tokens)])
    if wants is None:
        return
    count = min(len(work.tokens), len(job.prompt) - 1 - job.taken)
    logprobs, *top = (x[row, :count] for x in said[:3])
    result.prompt_logprobs += logprobs.tolist()
    result.prompt_top += _pairs(*(x[:, :wants] for x in top))


def share_prompt(known: Job, job: Job) -> None:
    """What is known of a prompt that another goes on from, too."""
    job.result.prompt_logprobs, job.result.prompt_top = map(
        list, (known.result.prompt_logprobs, known.result.prompt_top)
    )
    job.routed = list(known.routed)


def end(job: Job, finish: str) -> None:
    """Puts what is known in the end into a result."""
    result = job.result
    result.finish = finish
    if job.text is not None:
        result.text += job.text.end()
    if job.routed:  # the last token of an answer went through no layer
        result.routed_experts = np.concatenate(job.routed)[: len(job.prompt) + max(0, len(result.tokens) - 1)]
        job.routed = []


def _pairs(ids: np.ndarray, logprobs: np.ndarray) -> list[list[tuple[int, float]]]:
    """(id, log-probability) of the likeliest at each place."""
    return [[*zip(*row, strict=True)] for row in zip(ids.tolist(), logprobs.tolist(), strict=True)]


def _read(job: Job, new: Sequence[int]) -> tuple[int, bool]:
    """(how many of the new tokens the answer has, whether the last of them ends it); the text with them."""
    if job.text is None:
        return len(new), new[-1] in job.request.stop_ids
    for count, token in enumerate(new, start=1):
        job.result.text += job.text.take([token])
        if job.text.finish is not None:
            return count, True
    return len(new), False
