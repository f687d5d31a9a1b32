"""The conversations of one split as tokens, targets and tiles, measured once and made by index."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mm01_jax.config import VisionConfig
from mm01_jax.data.conversation_files import Conversation, Picture
from mm01_jax.data.conversations import Rendered, render
from mm01_jax.data.corpus import PROGRESS_SECONDS, Corpus
from mm01_jax.data.image_grid import NEWLINE, TEXT, ImageLayout, text_table
from mm01_jax.data.text import DataError
from mm01_jax.data.tokenizer import Tokenizer


class Sample(NamedTuple):
    """A conversation of T tokens and n tiles. image_index: (T,) int32 table. tiles: (n, 3, side, side) float32."""

    ids: np.ndarray
    answer: np.ndarray
    image_index: np.ndarray
    tiles: np.ndarray


class Samples:
    """Some conversations of a corpus.

    num_tokens_D, num_tiles_D: int64, of each. Images are opened for their sizes when samples are measured, and decoded
    where they are used.
    """

    def __init__(
        self,
        corpus: Corpus,
        chosen_D: np.ndarray,
        tokenizer: Tokenizer,
        vision: VisionConfig | None,
        *,
        template: str = "official",
        log: Callable[[str], None],
    ):
        self._template = template
        self._corpus, self._chosen_D, self._tokenizer, self._vision = corpus, chosen_D, tokenizer, vision
        self._sizes: dict[Picture, tuple[int, int]] = {}  # many conversations may be about one picture
        if vision and tokenizer.special("<image>") != vision.image_token:
            raise ValueError(
                f"vision.image_token={vision.image_token}; allowed is {tokenizer.special('<image>')}, which "
                f"data.tokenizer={tokenizer.name!r} has for <image>."
            )
        self.num_tokens_D, self.num_tiles_D = np.zeros((2, len(chosen_D)), np.int64)
        self._answer_tokens = self._answer_bytes = 0
        clock = time.monotonic()
        for document in range(len(chosen_D)):
            self._measure(document)
            if time.monotonic() - clock > PROGRESS_SECONDS:
                clock = time.monotonic()
                log(f"data: measured {document + 1:,} of {len(chosen_D):,} conversations")

    @property
    def targets_per_byte(self) -> float:
        """Learnt tokens over bytes of what they spell: nats a target / ln 2 * this = bits a byte."""
        return self._answer_tokens / max(self._answer_bytes, 1)

    def label(self, document: int) -> str:
        """How a person finds a sample."""
        return self._corpus.label(int(self._chosen_D[document]))

    def sample(self, document: int) -> Sample:
        """Tokens and pixels.

        Raises:
          DataError: an image or a record that is not what it was when it was measured.
        """
        sample = self._made(document, self._conversation(document))
        if len(sample.ids) != self.num_tokens_D[document]:
            raise DataError(f"{self.label(document)} changed while in use: it has other images or another text now.")
        return sample

    def rejected(self, document: int) -> Sample:
        """Of a pair the sample with the answer that was not preferred in the place of the last; errors as `sample`."""
        pair = self._conversation(document)
        answer = {"role": "assistant", "content": pair.rejected}
        return self._made(document, pair._replace(messages=[*pair.messages[:-1], answer]))

    def _made(self, document: int, conversation: Conversation) -> Sample:
        layouts, tiles = [], []
        for picture in conversation.pictures:
            layout, pixels = self._see(picture)
            layouts.append(layout)
            tiles.append(pixels)
        rendered = self._render(conversation, layouts, document)
        image_index = np.full(len(rendered.ids), TEXT, np.int32)
        if tiles:
            image_index = text_table(rendered.ids == self._vision.image_token, layouts)
        return Sample(*rendered, image_index, np.concatenate(tiles) if tiles else self._no_tiles())

    def join(self, samples: Sequence[Sample], sequence_length: int) -> dict[str, np.ndarray]:
        """One row of samples that fit into it; the rest is padding."""
        S, at, tiles = sequence_length, 0, [self._no_tiles()]
        row = {name: np.zeros(S, np.int32) for name in ("tokens", "targets", "positions")}
        row |= {"segments": np.full(S, -1, np.int32), "image_index": np.full(S, TEXT, np.int32)}
        row["weights"] = np.zeros(S, np.float32)
        for segment, sample in enumerate(samples):
            stop = at + len(sample.ids)
            row["tokens"][at:stop] = sample.ids
            row["targets"][at : stop - 1] = sample.ids[1:]
            row["weights"][at : stop - 1] = sample.answer[1:]
            row["positions"][at:stop] = np.arange(stop - at)
            row["segments"][at:stop] = segment
            before = sum(map(len, tiles)) * (self._vision.num_patches if self._vision else 0)
            row["image_index"][at:stop] = sample.image_index + np.where(sample.image_index > NEWLINE, before, 0)
            tiles.append(sample.tiles)
            at = stop
        return row | {"tiles": np.concatenate(tiles)}

    def _no_tiles(self) -> np.ndarray:
        side = self._vision.image_size if self._vision else 0
        return np.zeros((0, 3, side, side), np.float32)

    def _measure(self, document: int) -> None:
        conversation = self._conversation(document)
        try:
            layouts = [self._lay_out(picture) for picture in conversation.pictures]
        except DataError as error:
            raise DataError(f"{self.label(document)}: {error}") from error
        rendered = self._render(conversation, layouts, document)
        self.num_tokens_D[document] = len(rendered.ids)
        self.num_tiles_D[document] = sum(layout.num_tiles for layout in layouts)
        if not rendered.answer.any():
            raise DataError(f"{self.label(document)}: no message of the assistant, so nothing to learn from.")
        self._answer_tokens += int(rendered.answer.sum())
        said = self._tokenizer.decode(rendered.ids[rendered.answer])
        self._answer_bytes += len(said.encode())

    def _conversation(self, document: int) -> Conversation:
        source = int(self._chosen_D[document])
        conversation = self._corpus.conversation(source)
        if conversation.pictures and self._vision is None:
            raise DataError(f"{self.label(document)} has images, and the config has no vision; one that has is vl_01.")
        return conversation

    def _render(self, conversation: Conversation, layouts: Sequence[ImageLayout], document: int) -> Rendered:
        try:
            tokens = [layout.num_tokens for layout in layouts]
            return render(conversation.messages, self._tokenizer, tokens, template=self._template)
        except ValueError as error:
            raise DataError(f"{self.label(document)}: {error}") from error

    def _lay_out(self, picture: Picture) -> ImageLayout:
        from mm01_jax.data.images import opening, processor  # need pillow, which text alone does not

        size = self._sizes.get(picture)
        if size is None:
            size = opening.open_image(picture.source, picture.name, picture.root).size
            if not isinstance(picture.source, bytes) and len(self._sizes) < 1 << 16:
                self._sizes[picture] = size
        return processor.layout_of(size, self._vision, picture.name)

    def _see(self, picture: Picture) -> tuple[ImageLayout, np.ndarray]:
        from mm01_jax.data.images import decoding, opening, processor

        image = decoding.decode(opening.open_image(picture.source, picture.name, picture.root), picture.name)
        layout = processor.layout_of(image.size, self._vision, picture.name)
        return layout, processor.normalise(processor.make_tiles(image, self._vision, picture.name))
