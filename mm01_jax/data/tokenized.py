"""The documents of one split as tokens, counted once and read by position."""

import functools
import time
from collections.abc import Callable

import numpy as np

from mm01_jax.data.corpus import PROGRESS_SECONDS, Corpus
from mm01_jax.data.text import DataError
from mm01_jax.data.tokenizer import Tokenizer


class TokenizedDocuments:
    """`packing.TokenDocuments` over some documents of a corpus.

    Bytes are counted without being read and read by range. Any other tokenizer counts by encoding every document
    once at the start; a document is encoded again where it is used.
    """

    def __init__(self, corpus: Corpus, chosen_D: np.ndarray, tokenizer: Tokenizer, log: Callable[[str], None]):
        self._corpus, self._chosen_D, self._tokenizer = corpus, chosen_D, tokenizer
        self.end_of_document = tokenizer.end_of_document
        self.num_bytes = int(corpus.size_D[chosen_D].sum())
        self.num_tokens_D = corpus.size_D[chosen_D] if tokenizer.name == "bytes" else self._count(log)

    @property
    def targets_per_byte(self) -> float:
        """Predicted tokens over bytes of text: nats a target / ln 2 * this = bits a byte."""
        return int(self.num_tokens_D.sum()) / self.num_bytes

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        if self._tokenizer.name == "bytes":
            return self._tokenizer.encode(self._corpus.read(int(self._chosen_D[document]), start, stop))
        return self._encode(document)[start:stop]

    def _count(self, log: Callable[[str], None]) -> np.ndarray:
        counts_D = np.zeros(len(self._chosen_D), np.int64)
        clock = time.monotonic()
        for document in range(len(counts_D)):
            counts_D[document] = len(self._encode_once(document))
            if time.monotonic() - clock > PROGRESS_SECONDS:
                clock = time.monotonic()
                log(f"data: counted the tokens of {document + 1:,} of {len(counts_D):,} documents")
        return counts_D

    def _encode_once(self, document: int) -> np.ndarray:
        source = int(self._chosen_D[document])
        ids = self._tokenizer.encode(self._corpus.read(source))
        if len(ids) == 0 or self.end_of_document in ids:
            what = "no token" if len(ids) == 0 else f"the end-of-document id {self.end_of_document} as text"
            raise DataError(
                f"{self._corpus.label(source)}: data.tokenizer={self._tokenizer.name!r} makes {what} of it."
            )
        return ids

    # A document that goes on over many rows is encoded once, not once a row.
    _encode = functools.lru_cache(maxsize=16)(_encode_once)  # noqa: B019
