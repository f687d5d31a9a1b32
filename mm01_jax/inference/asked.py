"""What is asked of a model, and what it answers."""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.inference.sampling import Sampling
from mm01_jax.inference.stops import Stops


class Asked(NamedTuple):
    """A prompt and what it shows.

    ids: (S,) int32. index: (S,) int32, their index table. files: the images; without any there is no table.
    """

    ids: np.ndarray
    index: np.ndarray | None = None
    files: tuple[str | os.PathLike | bytes, ...] = ()


class Shown(NamedTuple):
    """What the image tokens of one prompt show.

    tiles: (T, 3, side, side) float32, the normalised tiles of its images. index: (S,) int32, the prompt's index table
    (data/image_grid.py).
    """

    tiles: np.ndarray
    index: np.ndarray


class Settings(NamedTuple):
    """How to generate. seed: of the first prompt, one more for each next; the same one gives the same text. stop: what
    ends a text besides its own end. thinks: whether the model thinks before it answers; thinking_tokens: for how long
    at most, None: as long as it likes.
    """

    max_tokens: int
    sampling: Sampling
    seed: int
    stop: Stops = Stops()
    thinks: bool = False
    thinking_tokens: int | None = None


class Job(NamedTuple):
    """A prompt, how it is answered, how many times; shows: makes what it shows, when its turn comes."""

    prompt: np.ndarray
    settings: Settings
    samples: int = 1
    shows: Callable[[], Shown] | None = None


class Answer(NamedTuple):
    """finish: "stop", the model ended its text, or "length", it was cut at max_tokens; else as in `Result`. thinking:
    what it thought before it answered; None of a model that does not. error: why it is not whole, where it is not."""

    text: str
    finish: str
    thinking: str | None = None
    error: str | None = None


def ends(tokenizer: Tokenizer, settings: Settings, stop: int | None) -> Stops:
    """What ends a text: the end of a document, the end of a turn (`stop`), what was asked for."""
    own = {tokenizer.end_of_document} if stop is None else {tokenizer.end_of_document, stop}
    return settings.stop._replace(ids=settings.stop.ids | own)
