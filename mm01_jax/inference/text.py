"""From prompts to text: `generate` at once, `stream` as it comes."""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mm01_jax.data.conversations import END
from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.inference import decoding
from mm01_jax.inference.sampling import Sampling
from mm01_jax.inference.stops import Stops, TextStream
from mm01_jax.model.decoder import TextModel


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


class Answer(NamedTuple):
    """finish: "stop", the model ended its text, or "length", it was cut at max_tokens. thinking: what it thought before
    it answered; None of a model that does not."""

    text: str
    finish: str
    thinking: str | None = None


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
      sampling: None is `Sampling()`. seed: of the first prompt, one more for each next; a
        prompt's text follows from it and its seed.

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
    text = TextStream(tokenizer, ends(tokenizer, settings, stop), prompt)
    for block in _blocks(model, tokenizer, [prompt], settings, stop, images):
        yield text.take(block[0])
        if text.finish is not None:
            break
    yield text.end()
    return text.finish or "length"


def answers(
    model: TextModel,
    tokenizer: Tokenizer,
    prompts: Sequence[np.ndarray],
    settings: Settings,
    stop: int | None = None,
    images: decoding.Images | None = None,
) -> list[Answer]:
    """The text after each of some prompts, generated together; `stop` as in `stream`."""
    texts = [TextStream(tokenizer, ends(tokenizer, settings, stop), prompt) for prompt in prompts]
    pieces = [[] for _ in prompts]
    for block in _blocks(model, tokenizer, prompts, settings, stop, images):
        for row, ids in enumerate(block):
            pieces[row].append(texts[row].take(ids))
        if all(text.finish is not None for text in texts):
            break
    return [
        Answer("".join([*said, text.end()]), text.finish or "length") for said, text in zip(pieces, texts, strict=True)
    ]


def ends(tokenizer: Tokenizer, settings: Settings, stop: int | None) -> Stops:
    """What ends a text: the end of a document, the end of a turn (`stop`), what was asked for."""
    own = {tokenizer.end_of_document} if stop is None else {tokenizer.end_of_document, stop}
    return settings.stop._replace(ids=settings.stop.ids | own)


def _blocks(model, tokenizer, prompts, settings: Settings, stop: int | None, images) -> Iterator[np.ndarray]:
    return decoding.generate(
        model,
        prompts,
        images=images,
        max_tokens=settings.max_tokens,
        sampling=settings.sampling,
        seed=settings.seed,
        stop=sorted(ends(tokenizer, settings, stop).ids),
        vocab_size=tokenizer.vocab_size,
    )
