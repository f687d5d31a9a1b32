"""Many prompts through the engine: each begins as soon as another has ended, and has settings of its own.

A line of a file of prompts may say them: {"prompt": ..., "options": {"temperature": 0, "stop": ["\\n"], "n": 2, ...}};
what it does not say is as of the command.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mm01_jax.config.fields import nearest_name
from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.inference.asked import Answer, Job, Settings
from mm01_jax.inference.engine_request import MOST_SAMPLES, Result, check_biases, check_count, whole_numbers
from mm01_jax.inference.fitting import engine_for, request_of
from mm01_jax.inference.sampling import Sampling, check_seed
from mm01_jax.inference.stops import stops
from mm01_jax.inference.thoughts import split
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.multimodal import VLModel
from mm01_jax.values import MOST_TOKENS

_SAMPLING = tuple(field.name for field in dataclasses.fields(Sampling))
OPTIONS = (*_SAMPLING, "max_tokens", "seed", "stop", "n", "thinking_tokens")


def job(prompt: np.ndarray, settings: Settings, options: Mapping[str, Any]) -> Job:
    """A prompt with `settings`, but for what its options say.

    Raises:
      ValueError: names the option that is none, or whose value may not be.
    """
    if not isinstance(options, Mapping):
        raise ValueError(f"options: got {options!r}; allowed: an object of {', '.join(OPTIONS)}")
    for name in options.keys() - set(OPTIONS):
        raise ValueError(
            f"options: got {name!r}; allowed: {', '.join(OPTIONS)}; nearest: {nearest_name(name, OPTIONS)}"
        )
    said = {name: options[name] for name in _SAMPLING if name in options}
    if isinstance(bias := said.get("logit_bias"), Mapping):
        said["logit_bias"] = {_token_id(token): value for token, value in bias.items()}
    sampling = dataclasses.replace(settings.sampling, **said)
    max_tokens, samples = options.get("max_tokens", settings.max_tokens), options.get("n", 1)
    thinking_tokens = options.get("thinking_tokens", settings.thinking_tokens)
    check_count("max_tokens", max_tokens, 1, MOST_TOKENS)
    check_count("n", samples, 1, MOST_SAMPLES)
    if thinking_tokens is not None:
        check_count("thinking_tokens", thinking_tokens, 1, MOST_TOKENS)
        if not settings.thinks:
            raise ValueError("thinking_tokens: allowed of a conversation whose template knows <think> alone")
    seed = check_seed(options.get("seed", settings.seed))
    stop = stops(options["stop"]) if "stop" in options else settings.stop
    return Job(prompt, Settings(max_tokens, sampling, seed, stop, settings.thinks, thinking_tokens), samples)


def check_ids(job: Job, vocab_size: int) -> None:
    """ValueError where an id that ends an answer, or whose logit is moved, is none of the vocabulary."""
    check_biases(job.settings.sampling, vocab_size)
    whole_numbers("stop", sorted(job.settings.stop.ids), vocab_size)


def _token_id(text: str) -> int:
    """An id as JSON has it for a key."""
    if not (isinstance(text, str) and text.isdecimal()):
        raise ValueError(f"logit_bias has the id {text!r}; allowed are whole numbers from 0 on")
    return int(text)


def answers(
    model: TextModel | VLModel,
    tokenizer: Tokenizer,
    jobs: Sequence[Job],
    *,
    slots: int,
    done: int = 0,
    told: Callable[[dict], object] = lambda _: None,
) -> Iterator[list[Answer]]:
    """The answers to each job, in order, as soon as it and those before it are done.

    Every process of the model's mesh calls it alike.

    Args:
      slots: how many answers run at a time, at least. done: of the first so many jobs nothing is asked any more; the
        engine is as it is for all, so that those that are left have the bits that they have after the others.
      told: gets the engine's statistics in the end.
    """
    requests = [request_of(job, tokenizer) for job in jobs]
    slots = min(slots, sum(job.samples for job in jobs))
    engine = engine_for(model, tokenizer, requests, slots, tiles=max(job.tiles for job in jobs))
    todo = collections.deque([*zip(jobs, requests, strict=True)][done:])
    submitted, under_way = collections.deque(), set()
    while todo or submitted:
        while todo and len(under_way) < 2 * engine.sizes.num_slots:  # pixels of all would be many
            job, request = todo.popleft()
            shown = None if job.shows is None else job.shows()
            ids = engine.submit_samples(dataclasses.replace(request, shows=shown), job.samples)
            submitted.append((job, ids))
            under_way.update(ids)
        under_way.difference_update(event.id for event in engine.step() if event.finish is not None)
        while submitted and under_way.isdisjoint(submitted[0][1]):
            job, ids = submitted.popleft()
            yield [_answer(job, engine.forget(id)) for id in ids]
    told(engine.statistics())


def _answer(job: Job, result: Result) -> Answer:
    if not job.settings.thinks:
        return Answer(result.text, result.finish, error=result.error)
    said = split(result.text)
    return Answer(said.text, result.finish, said.thinking, result.error)
