"""From prompts to text: `generate` at once, `stream` as it comes."""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mm01_jax.data.conversations import END
from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.inference import decoding
from mm01_jax.inference.sampling import Sampling
from mm01_jax.model.decoder import TextModel


class Settings(NamedTuple):
    """How to generate; the same seed gives the same text."""

    max_tokens: int
    sampling: Sampling
    seed: int


class Answer(NamedTuple):
    """finish: "stop", the model ended its text, or "length", it was cut at max_tokens."""

    text: str
    finish: str


def generate(
    model: TextModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    seed: int = 0,
    images: Sequence[Sequence[str | os.PathLike | bytes]] | None = None,
) -> list[str]:
    """The text after each prompt, generated together on the mesh that the model is on.

    Args:
      images: of a VLModel, the files of each prompt in the order of its `<image>` marks; a prompt is then what a user
        says, in the official template.
      sampling: None is `Sampling()`. seed: the same one gives the same text.

    Raises:
      ValueError: one string instead of several, an empty prompt, max_tokens below 1.
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


def stream(
    model: TextModel,
    tokenizer: Tokenizer,
    prompt: np.ndarray,
    settings: Settings,
    stop: int | None = None,
    images: decoding.Images | None = None,
) -> Iterator[str]:
    """Pieces of the text after one prompt; bytes of an unfinished character wait for the next piece.

    Args:
      images: what the image tokens of the prompt show (`pictures.prompts`).
      stop: the id that ends the text besides the tokenizer's end of a document.
    Returns:
      (of the generator) how it finished, as in `Answer`.
    """
    ids, shown, finish = [], "", "length"
    for block in _blocks(model, tokenizer, [prompt], settings, stop, images):
        kept = until_stop(block[0], tokenizer, stop)
        ids += kept
        text = tokenizer.decode(np.array(ids, np.int32))
        stable = text.rstrip("\ufffd")
        yield stable[len(shown) :]
        shown = stable
        if len(kept) < len(block[0]):
            finish = "stop"
            break
    if ids and text != shown:
        yield text[len(shown) :]
    return finish


def answers(
    model: TextModel,
    tokenizer: Tokenizer,
    prompts: Sequence[np.ndarray],
    settings: Settings,
    stop: int | None = None,
    images: decoding.Images | None = None,
) -> list[Answer]:
    """The text after each of some prompts, generated together; `stop` as in `stream`."""
    rows = np.concatenate(list(_blocks(model, tokenizer, prompts, settings, stop, images)), axis=1)
    kept = [until_stop(row, tokenizer, stop) for row in rows]
    ends = ["stop" if len(ids) < settings.max_tokens else "length" for ids in kept]
    texts = [tokenizer.decode(np.array(ids, np.int32)) for ids in kept]
    return [Answer(text, finish) for text, finish in zip(texts, ends, strict=True)]


def until_stop(ids: np.ndarray, tokenizer: Tokenizer, stop: int | None) -> list[int]:
    """The ids before the first that ends a text."""
    ends = np.flatnonzero(np.isin(ids, [tokenizer.end_of_document, *([] if stop is None else [stop])]))
    return [int(i) for i in (ids[: ends[0]] if len(ends) else ids)]


def _blocks(model, tokenizer, prompts, settings: Settings, stop: int | None, images) -> Iterator[np.ndarray]:
    return decoding.generate(
        model,
        prompts,
        images=images,
        max_tokens=settings.max_tokens,
        sampling=settings.sampling,
        key=jax.random.key(settings.seed),
        stop=tokenizer.end_of_document if stop is None else stop,
        vocab_size=tokenizer.vocab_size,
    )
