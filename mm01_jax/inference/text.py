"""From prompts to text, on the engine: `generate` at once, `Speaker` and `stream` as it comes."""

import dataclasses
import os
from collections.abc import Iterator, Sequence

import numpy as np

from mm01_jax.data.conversations import END
from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.inference import batch
from mm01_jax.inference.asked import Answer, Job, Settings, Shown
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_request import Request, check_count
from mm01_jax.inference.fitting import engine_for, request_of
from mm01_jax.inference.sampling import Sampling
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.multimodal import VLModel


def generate(
    model: TextModel | VLModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    seed: int = 0,
    images: Sequence[Sequence[str | os.PathLike | bytes]] | None = None,
) -> list[str]:
    """The text after each prompt, all of them in one engine, on the mesh that the model is on.

    Args:
      images: of a VLModel, the files of each prompt in the order of its `<image>` marks; a prompt is then what a user
        says, in the official template.
      sampling: None is `Sampling()`. seed: of the first prompt, one more for each next; a
        prompt's text follows from it and its seed.

    Raises:
      ValueError: one string instead of several, no prompt or an empty one, max_tokens below 1.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts: got the text {prompts!r}; allowed: a list of texts; nearest: [{prompts!r}]")
    settings = Settings(max_tokens, sampling or Sampling(), seed)
    if images is not None:
        from mm01_jax.inference import pictures  # needs pillow, which text alone does not

        asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
        ids, shown = pictures.prompts(asked, images, tokenizer, model.vision.config)
        given = answers(model, tokenizer, ids, settings, tokenizer.special(END), shown)
        return [answer.text for answer in given]
    return [answer.text for answer in answers(model, tokenizer, [tokenizer.encode(p) for p in prompts], settings)]


def answers(
    model: TextModel | VLModel,
    tokenizer: Tokenizer,
    prompts: Sequence[np.ndarray],
    settings: Settings,
    stop: int | None = None,
    images: Sequence[Shown] | None = None,
) -> list[Answer]:
    """The text after each of some prompts, all of them in one engine.

    stop: the id that ends a text besides the tokenizer's end of a document. images: what each prompt shows.
    """
    check_count("max_tokens", settings.max_tokens, 1, batch.MOST_TOKENS)
    if not len(prompts):
        raise ValueError("prompts: got none; allowed: at least one")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompts[{number}]: got no token; allowed: at least one")
    jobs = [Job(prompt, settings._replace(seed=settings.seed + number)) for number, prompt in enumerate(prompts)]
    if images is not None:
        told = zip(jobs, images, strict=True)
        jobs = [job._replace(shows=lambda shown=shown: shown, tiles=len(shown.tiles)) for job, shown in told]
    return [answer for (answer,) in batch.answers(model, tokenizer, jobs, slots=len(jobs), stop=stop)]


class Speaker:
    """A model that says one thing after another, each as it comes.

    stop: as in `answers`. remembers: what a prompt shares with those before is not taken in again.
    """

    def __init__(
        self,
        model: TextModel | VLModel,
        tokenizer: Tokenizer,
        settings: Settings,
        stop: int | None = None,
        *,
        remembers: bool = False,
    ):
        self._model, self._tokenizer, self._settings, self._stop = model, tokenizer, settings, stop
        self._remembers = remembers
        self._engine: Engine | None = None

    def say(self, prompt: np.ndarray, shown: Shown | None = None) -> Iterator[str]:
        """Pieces of the text after a prompt; bytes of an unfinished character wait for the next piece.

        Args:
          shown: what its image tokens show.

        Returns:
          (of the generator) how it finished, as in `Answer`.
        """
        request = request_of(Job(prompt, self._settings), self._tokenizer, self._stop)
        request = dataclasses.replace(request, shows=shown)
        engine = self._taken(request)
        id = engine.submit(request)
        yield from engine.stream_text(id)
        self._engine = engine
        return engine.forget(id).finish

    def _taken(self, request: Request) -> Engine:
        """An engine that can: the one that is there, or another, twice as long. Whoever cuts an answer off (Ctrl-C)
        does it anywhere, also between a call of the devices and what is noted of it: then none is there."""
        engine, self._engine = self._engine, None
        needed, tiles = (
            len(request.prompt) + request.max_tokens,
            0 if request.shows is None else len(request.shows.tiles),
        )
        if engine is not None and needed <= engine.sizes.max_length and bool(tiles) <= bool(engine.sizes.tiles):
            return engine
        del engine  # its slots go before others come
        length = {"length": 2 * needed} if self._remembers else {}
        return engine_for(self._model, self._tokenizer, [request], 1, tiles=tiles, **length)


def stream(
    model: TextModel | VLModel,
    tokenizer: Tokenizer,
    prompt: np.ndarray,
    settings: Settings,
    stop: int | None = None,
    shown: Shown | None = None,
) -> Iterator[str]:
    """One prompt's text as `Speaker.say` gives it."""
    return (yield from Speaker(model, tokenizer, settings, stop).say(prompt, shown))
