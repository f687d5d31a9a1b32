"""What is asked of a model, and what it answers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mm01_jax.config import VisionConfig
from mm01_jax.data.image_grid import TEXT
from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.inference.sampling import Sampling
from mm01_jax.inference.stops import Stops
from mm01_jax.messages import counted

if TYPE_CHECKING:
    from mm01_jax.data.images.opening import Source  # needs pillow, which text alone does not


class Asked(NamedTuple):
    """A prompt, what it shows, and what its answer is like.

    ids: (S,) int32. index: (S,) int32, their index table. files: the images; without any there is no table. stop: the
    id that ends its answer besides the end of a document: the end of a turn, of a conversation. thinks: whether the
    model thinks before it answers.
    """

    ids: np.ndarray
    index: np.ndarray | None = None
    files: "tuple[Source, ...]" = ()
    stop: int | None = None
    thinks: bool = False


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
    """A prompt, how it is answered, how many times.

    shows: makes what its image tokens show, when its turn comes; tiles: how many those are. stop: as in `Asked`.
    """

    prompt: np.ndarray
    settings: Settings
    samples: int = 1
    shows: Callable[[], Shown] | None = None
    tiles: int = 0
    stop: int | None = None


class Answer(NamedTuple):
    """finish: "stop", the model ended its text, or "length", it was cut at max_tokens; else as in `Result`. thinking:
    what it thought before it answered; None of a model that does not. error: why it is not whole, where it is not."""

    text: str
    finish: str
    thinking: str | None = None
    error: str | None = None


def ends(tokenizer: Tokenizer, job: Job) -> Stops:
    """What ends an answer: the end of a document, that of a turn, what was asked for."""
    own = {tokenizer.end_of_document} if job.stop is None else {tokenizer.end_of_document, job.stop}
    asked = job.settings.stop
    return asked._replace(ids=asked.ids | own)


def check_shown(prompt: np.ndarray, shows: Shown | None, vision: VisionConfig | None, tiles: int) -> None:
    """ValueError where a prompt's images are none, are not those of its tokens, or nobody looks at them."""
    image_token = None if vision is None else vision.image_token
    if shows is None:
        if vision is not None and (marked := prompt == image_token).any():
            raise ValueError(
                f"prompt: got {counted(marked.sum(), 'token')} of images (id {image_token}) and no images; allowed: as "
                "many as the images take; nearest: Request(shows=Shown(tiles, index)) (`pictures.show`)"
            )
        return
    if vision is None or not tiles:
        why = "a model without a vision tower" if vision is None else "an engine of tiles=0; nearest: Engine(tiles=8)"
        raise ValueError(f"shows: got images; allowed: none of {why}")
    if not isinstance(shows, Shown):
        raise ValueError(f"shows: got a {type(shows).__name__}; allowed: a Shown, or None")
    _check_tiles(shows.tiles, (3, vision.image_size, vision.image_size))
    _check_index(np.asarray(shows.index), prompt, image_token, len(shows.tiles) * vision.num_patches)


def _check_tiles(tiles: np.ndarray, shape: tuple[int, ...]) -> None:
    if not isinstance(tiles, np.ndarray) or tiles.dtype != np.float32 or tiles.shape[1:] != shape or not len(tiles):
        got = f"{tiles.dtype}{list(tiles.shape)}" if isinstance(tiles, np.ndarray) else f"a {type(tiles).__name__}"
        raise ValueError(f"shows.tiles: got {got}; allowed: float32 of at least one tile of {list(shape)}")
    if not np.isfinite(tiles).all():
        raise ValueError("shows.tiles: got numbers that are not finite; allowed: normalised pixels")


def _check_index(index: np.ndarray, prompt: np.ndarray, image_token: int, most: int) -> None:
    if index.dtype.kind not in "iu" or index.shape != prompt.shape:
        raise ValueError(f"shows.index: got {index.dtype}{list(index.shape)}; allowed: a whole number for each token")
    if (wrong := np.flatnonzero((index < TEXT) | (index > most))).size:
        raise ValueError(f"shows.index: got {index[wrong[0]]}; allowed: {TEXT} (text) to {most}, the last patch")
    if (wrong := np.flatnonzero((index != TEXT) != (prompt == image_token))).size:
        at = wrong[0]
        raise ValueError(
            f"shows.index: got {index[at]} at token {at}, which is {prompt[at]}; allowed: an image at the tokens "
            f"{image_token}, and {TEXT} at all others"
        )
