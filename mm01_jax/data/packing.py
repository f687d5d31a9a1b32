"""Documents into rows, in index space.

The stream of an epoch is the tokens of every document in that epoch's order, each document followed by one
end-of-document token; epochs follow one another. Row i is tokens [i S, (i + 1) S) of the stream, so a row is a
function of its index alone: batch size, workers and hosts neither repeat nor skip a token.

    stream     a a a . b b | b b b . c . | ...        S = 6, "." ends a document
    segments   0 0 0 0 1 1 | 0 0 0 0 1 1
    positions  0 1 2 3 0 1 | 0 1 2 3 0 1              a document cut by a row starts afresh in the next row
    targets    a a . b b b | b b . c . d              the next token of the stream
    weights    1 1 1 0 1 1 | 1 1 1 0 1 0              0 where the next token is another document's, or is not learnt
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from mm01_jax.data.shuffle import ROWS, epoch_order, permutation

GROUP = 64  # documents of an epoch whose places are counted when they are needed: 8 bytes each take much memory
VERSION = 1  # of the rule above; a run resumes only with the rule that it began with


class TokenDocuments(Protocol):
    """Tokenised documents by index.

    Where only parts of them are learnt they also have `learnt(document, start, stop)`, bool, of the same tokens and the
    end-of-document token behind them. Where reading some together saves time they have `several(spans)`.
    """

    num_tokens_D: np.ndarray  # whole numbers, without the end-of-document token, all >= 1
    end_of_document: int

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        """int32 tokens [start, stop) of a document."""


class Rows(Protocol):
    """Rows of S tokens by index."""

    num_rows: int | None  # rows that hold a token, None when there is no end

    def row(self, index: int) -> dict[str, np.ndarray]:
        """(S,) int32 tokens, targets, positions, segments and float32 weights of row `index`.

        Where `num_tiles` is above 0 also (S,) int32 image_index and (num_tiles, 3, side, side) float32 tiles.
        """

    def num_tiles(self, index: int) -> int:
        """Tiles of the images in row `index`."""


class PackedRows:
    """Rows of S tokens of a token stream.

    `epochs=None` repeats the documents for ever, each epoch in another order. `epochs=1` is a finite stream for
    evaluation: what is past its end is padding.
    """

    def __init__(self, documents: TokenDocuments, sequence_length: int, seed: int, epochs: int | None = None):
        if sequence_length < 1:
            raise ValueError(f"train.sequence_length={sequence_length} must be at least 1.")
        self.documents, self.sequence_length, self.seed, self.epochs = documents, sequence_length, seed, epochs
        self.tokens_per_epoch = int(documents.num_tokens_D.sum(dtype=np.int64)) + len(documents.num_tokens_D)
        self.num_rows = None if epochs is None else -(-epochs * self.tokens_per_epoch // sequence_length)
        self._learnt = getattr(documents, "learnt", None)
        # Rows of two neighbouring epochs are made at the same time.
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)
        self._group = functools.lru_cache(maxsize=16)(self._make_group)  # a row has most of its documents of one

    def row(self, index: int) -> dict[str, np.ndarray]:
        S = self.sequence_length
        stream = np.zeros(S + 1, np.int32)  # one more: the target of the row's last token
        segments = np.full(S, -1, np.int32)
        positions = np.zeros(S, np.int32)
        weights = np.zeros(S, np.float32)
        filled, spans = 0, list(self._spans(index * S, S + 1))
        for segment, ((document, start, stop), tokens) in enumerate(zip(spans, self._tokens(spans), strict=True)):
            end = filled + stop - start
            stream[filled : filled + len(tokens)] = tokens
            stream[filled + len(tokens) : end] = self.documents.end_of_document
            segments[filled:end] = segment
            positions[filled:end] = np.arange(min(end, S) - filled)
            weights[filled : end - 1] = 1 if self._learnt is None else self._learnt(document, start, stop)[1:]
            filled = end
        return {
            "tokens": stream[:S],
            "targets": stream[1:],
            "positions": positions,
            "segments": segments,
            "weights": weights,
        }

    def num_tiles(self, index: int) -> int:
        del index
        return 0

    def _spans(self, at: int, most: int) -> Iterator[tuple[int, int, int]]:
        """(document, start, stop), its end as one token more, of what has the `most` tokens of the stream from `at`."""
        stop = at + most
        while at < stop:
            epoch, offset = divmod(at, self.tokens_per_epoch)
            if self.epochs is not None and epoch >= self.epochs:
                return
            _, starts_G = self._epoch(epoch)
            documents_K, ends_K = self._group(epoch, int(np.searchsorted(starts_G, offset, side="right")) - 1)
            place = int(np.searchsorted(ends_K, offset, side="right"))
            length = int(self.documents.num_tokens_D[documents_K[place]])
            start = offset - (int(ends_K[place]) - length - 1)
            size = min(stop - at, length + 1 - start)
            yield int(documents_K[place]), start, start + size
            at += size

    def _tokens(self, spans: Sequence[tuple[int, int, int]]) -> Iterable[np.ndarray]:
        """The tokens of each, without those that end documents."""
        lengths = self.documents.num_tokens_D
        inside = [(document, start, min(stop, int(lengths[document]))) for document, start, stop in spans]
        several = getattr(self.documents, "several", None)
        if several is None or len(inside) < 2:  # a document of many rows is kept
            return (self.documents.tokens(*span) for span in inside)
        return several(inside)

    def _lengths(self, documents_K: np.ndarray) -> np.ndarray:
        """int64 tokens of documents in the stream: each is followed by its end."""
        return self.documents.num_tokens_D[documents_K].astype(np.int64) + 1

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of an epoch's documents, and where each `GROUP` of them begins in the epoch's stream, int64."""
        documents = len(self.documents.num_tokens_D)
        order_D = epoch_order(documents, self.seed, epoch).astype(np.min_scalar_type(documents))
        tokens_G = np.add.reduceat(self._lengths(order_D), np.arange(0, documents, GROUP))
        return order_D, np.cumsum(tokens_G) - tokens_G

    def _make_group(self, epoch: int, group: int) -> tuple[np.ndarray, np.ndarray]:
        """The documents of a group of an epoch, and where each ends in the epoch's stream, int64."""
        order_D, starts_G = self._epoch(epoch)
        documents_K = order_D[group * GROUP : (group + 1) * GROUP]
        return documents_K, starts_G[group] + np.cumsum(self._lengths(documents_K))


class ShuffledRows:
    """The rows of a finite stream in another order: its first rows are a sample of all documents, not the first few."""

    def __init__(self, stream: Rows):
        self.stream, self.num_rows, self.documents = stream, stream.num_rows, stream.documents
        self._order = permutation(stream.num_rows, ROWS, stream.seed)

    def row(self, index: int) -> dict[str, np.ndarray]:
        return self.stream.row(self._at(index))

    def num_tiles(self, index: int) -> int:
        return self.stream.num_tiles(self._at(index))

    def _at(self, index: int) -> int:
        return int(self._order[index]) if index < self.num_rows else index
