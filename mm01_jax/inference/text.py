"""From prompts to text, on the engine: `generate` at once, `Speaker` and `stream` as it comes."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Never

import numpy as np

from mm01_jax.config.fields import nearest_name
from mm01_jax.data.conversations import END
from mm01_jax.data.tokenizer import Tokenizer, check_utf8
from mm01_jax.files import quoted
from mm01_jax.inference import batch, marks
from mm01_jax.inference.asked import Answer, Job, Settings, Shown
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_request import Request, check_count
from mm01_jax.inference.engine_sizes import check_kind, check_model, check_tokenizer
from mm01_jax.inference.fitting import engine_for, request_of
from mm01_jax.inference.sampling import Sampling, check_seed
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.multimodal import VLModel
from mm01_jax.values import MOST_TOKENS

if TYPE_CHECKING:
    from mm01_jax.data.images.opening import Source  # needs pillow, which text alone does not

_ARGUMENTS = ("max_tokens", "sampling", "seed", "images")


def generate(
    model: TextModel | VLModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    seed: int = 0,
    images: "Sequence[Sequence[Source]] | None" = None,
    **unknown: Never,
) -> list[str]:
    """The text after each prompt, all of them in one engine, on the mesh that the model is on.

    Args:
      images: of a VLModel, for each prompt a list of its pictures (paths, bytes of files, images of Pillow) in the
        order of its `<image>` marks, [] where it has none; every prompt is then what a user says, in the official
        template.
      sampling: how to choose, `Sampling(temperature=0)`; None is `Sampling()`. seed: of the first prompt, one more for
        each next; a prompt's text follows from it and its seed.

    Raises:
      ValueError: one string instead of several, no prompt or an empty one, max_tokens below 1; marks without pictures,
        pictures without marks, or of another form. ImageError: a file that is no sound picture. TypeError: another
        argument.
    """
    if unknown:
        raise TypeError(_not_taken(*next(iter(unknown.items()))))
    _check(model, tokenizer, prompts)
    check_kind("sampling", sampling, Sampling | None)
    check_seed(seed)
    settings = Settings(max_tokens, Sampling() if sampling is None else sampling, seed)
    vision = model.vision.config if isinstance(model, VLModel) else None
    if images is None:
        for number, prompt in enumerate(prompts):
            marks.check_text(f"prompts[{number}]", prompt, vision, 'images=[["a.png"]]')
        given = answers(model, tokenizer, [tokenizer.encode(prompt) for prompt in prompts], settings)
    elif vision is None:
        raise ValueError(f"images: got {quoted(images)}; allowed: None of a model of text; nearest: images=None")
    else:
        from mm01_jax.inference import pictures  # needs pillow, which text alone does not

        asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
        ids, shown = pictures.prompts(asked, images, tokenizer, vision)
        given = answers(model, tokenizer, ids, settings, tokenizer.special(END), shown)
    return [answer.text for answer in given]


def _check(model: TextModel | VLModel, tokenizer: Tokenizer, prompts: Sequence[str]) -> None:
    """ValueError where what `generate` is given is of another form."""
    if isinstance(prompts, str):
        raise ValueError(f"prompts: got the text {prompts!r}; allowed: a list of texts; nearest: [{prompts!r}]")
    if not isinstance(prompts, list | tuple):
        raise ValueError(f'prompts: got a {type(prompts).__name__}; allowed: a list of texts; nearest: ["def "]')
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompts[{number}]: got {quoted(prompt)}; allowed: a text")
        if not prompt:
            raise ValueError(f"prompts[{number}]: got no token; allowed: at least one")
        check_utf8(f"prompts[{number}]", prompt)
    check_model(model)
    check_tokenizer(tokenizer, "a Tokenizer; nearest: model, tokenizer, _ = mm01_jax.load(DIRECTORY)")


def _not_taken(name: str, value: object) -> str:
    """What is wrong with an argument that `generate` does not have."""
    settings = [field.name for field in dataclasses.fields(Sampling)]
    near = nearest_name(name, [*_ARGUMENTS, *settings])
    right = f"{near}={quoted(value)}"
    if near in settings:
        right = f"sampling=Sampling({right})"
    elif near == "images" and not isinstance(value, list | tuple):
        right = f"images=[[{quoted(value)}]]"
    nearest = "" if near is None else f"; nearest: {right}"
    return f"generate: got {name}={quoted(value)}; allowed: {', '.join(_ARGUMENTS)}{nearest}"


def answers(
    model: TextModel | VLModel,
    tokenizer: Tokenizer,
    prompts: Sequence[np.ndarray],
    settings: Settings,
    stop: int | None = None,
    images: Sequence[Shown | None] | None = None,
) -> list[Answer]:
    """The text after each of some prompts, all of them in one engine.

    stop: the id that ends a text besides the tokenizer's end of a document. images: what each prompt shows.
    """
    check_count("max_tokens", settings.max_tokens, 1, MOST_TOKENS)
    if not len(prompts):
        raise ValueError("prompts: got none; allowed: at least one")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompts[{number}]: got no token; allowed: at least one")
    jobs = []
    for number, (prompt, shown) in enumerate(zip(prompts, images or [None] * len(prompts), strict=True)):
        job = Job(prompt, settings._replace(seed=(settings.seed + number) % 2**64), stop=stop)
        if shown is not None:
            job = job._replace(shows=lambda shown=shown: shown, tiles=len(shown.tiles))
        jobs.append(job)
    return [answer for (answer,) in batch.answers(model, tokenizer, jobs, slots=len(jobs))]


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
        request = request_of(Job(prompt, self._settings, stop=self._stop), self._tokenizer)
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
