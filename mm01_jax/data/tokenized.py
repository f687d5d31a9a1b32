"""The documents of one split as tokens, counted once and read by position."""

import functools
import hashlib
import io
import pathlib
import time
from collections.abc import Callable, Iterator

import numpy as np

from mm01_jax.data.corpus import Corpus
from mm01_jax.data.text import FILES, PROGRESS_SECONDS, DataError
from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.files import written

_TOGETHER, _TEXTS_TOGETHER = 1 << 20, 64  # bytes and number of texts that are encoded together
MOST_TOKENS = 100  # of a byte, and of a hundred bytes beside each text's: NFKC and bytes as tokens make eleven
PAYS_SECONDS = 60.0  # of counting, from which on it pays to make tokens once


class TokenizedDocuments:
    """`packing.TokenDocuments` over some documents of a corpus.

    Bytes are counted without being read, and read by range where the file allows it. Any other tokenizer counts by
    encoding every document once, at the first start with `cache`; a document is encoded again where it is used.
    """

    def __init__(self, corpus: Corpus, chosen_D: np.ndarray, tokenizer: Tokenizer):
        self._corpus, self._chosen_D, self._tokenizer = corpus, chosen_D, tokenizer
        self._bytewise = tokenizer.name == "bytes"
        self.end_of_document = tokenizer.end_of_document
        self.num_bytes = int(corpus.size_D[chosen_D].sum())
        # A document that goes on over many rows is encoded once, not once a row.
        self._encode = functools.lru_cache(maxsize=16)(self._encode_once)
        self.num_tokens_D = corpus.size_D[chosen_D]

    @classmethod
    def counted(
        cls,
        corpus: Corpus,
        chosen_D: np.ndarray,
        tokenizer: Tokenizer,
        cache: pathlib.Path | None,
        log: Callable[[str], None],
    ) -> "TokenizedDocuments":
        """The documents with their numbers of tokens, which are kept in the folder `cache`."""
        documents = cls(corpus, chosen_D, tokenizer)
        if not documents._bytewise:
            key = hashlib.sha256(f"{corpus.fingerprint} {tokenizer.fingerprint}".encode() + chosen_D.tobytes())
            file = cache and cache / f"token_counts_{key.hexdigest()[:24]}.npy"
            documents.num_tokens_D = documents._load_counts(file) if file and file.exists() else documents._count(log)
            if file and not file.exists():
                _save(file, documents.num_tokens_D)
        return documents

    @property
    def targets_per_byte(self) -> float:
        """Predicted tokens over bytes of text: nats a target / ln 2 * this = bits a byte."""
        return int(self.num_tokens_D.sum()) / self.num_bytes

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        """int32 tokens [start, stop) of a document."""
        source = int(self._chosen_D[document])
        if self._bytewise and self._corpus.reads_ranges(source):
            return self._tokenizer.encode(self._corpus.read(source, start, stop))
        ids = self._encode(document)
        if len(ids) != self.num_tokens_D[document]:
            raise DataError(
                f"{self._corpus.label(source)} has {len(ids)} tokens, "
                f"{self.num_tokens_D[document]} were counted: the text or the token counts changed."
            )
        return ids[start:stop]

    def _count(self, log: Callable[[str], None]) -> np.ndarray:
        """Encodes every document once, those of a batch by as many threads as there are processors."""
        counts_D = np.zeros(len(self._chosen_D), np.int64)
        if lost := self._tokenizer.loses_blanks:
            log(f"data: {lost}")
        dropped = in_documents = 0
        progress = _Counting(self.num_bytes, len(counts_D), log)
        for first, texts in self._batches():
            for document, (ids, lost) in enumerate(self._tokenizer.encode_many(texts), start=first):
                counts_D[document] = len(self._checked(document, ids))
                dropped, in_documents = dropped + lost, in_documents + (lost > 0)
            progress.counted(first + len(texts), sum(map(len, texts)))
        if dropped:
            name = self._tokenizer.name
            log(
                f"data: {dropped:,} characters of {in_documents:,} documents have no token of {name!r} and are left out"
            )
        return counts_D

    def _batches(self) -> Iterator[tuple[int, list[bytes]]]:
        """(the first, texts) of documents that follow one another."""
        first, texts = 0, []
        for document, source in enumerate(self._chosen_D.tolist()):
            texts.append(self._read(source))
            if sum(map(len, texts)) > _TOGETHER or len(texts) == _TEXTS_TOGETHER or document + 1 == len(self._chosen_D):
                yield first, texts
                first, texts = document + 1, []

    def _load_counts(self, file: pathlib.Path) -> np.ndarray:
        try:
            content = FILES.read(file, most=8 * len(self._chosen_D) + 4096)
        except DataError as error:
            raise DataError(f"{error}; delete it, it is made again.") from None
        try:
            counts_D = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError, MemoryError, OverflowError, SyntaxError) as error:  # NumPy advises to unpickle it
            raise DataError(f"{file} is no array of NumPy; delete it, it is made again.") from error
        if counts_D.shape != self._chosen_D.shape or counts_D.dtype != np.int64 or (counts_D < 1).any():
            raise DataError(f"{file} does not hold {len(self._chosen_D)} token counts; delete it, it is made again.")
        if len(beyond := np.flatnonzero(counts_D > self._most_tokens(self._chosen_D))):
            label, count = self._corpus.label(int(self._chosen_D[beyond[0]])), counts_D[beyond[0]]
            raise DataError(f"{file} says {count:,} tokens of {label}, too many; delete it, it is made again.")
        return counts_D

    def _encode_once(self, document: int) -> np.ndarray:
        return self._checked(document, self._tokenizer.encode(self._read(int(self._chosen_D[document]))))

    def _read(self, source: int) -> bytes:
        """A whole text; DataError where it cannot be encoded."""
        text = self._corpus.read(source)
        if problem := self._tokenizer.problem(text):
            raise DataError(f"{self._corpus.label(source)}: {problem}.")
        return text

    def _checked(self, document: int, ids: np.ndarray) -> np.ndarray:
        source = int(self._chosen_D[document])
        if len(ids) == 0 or self.end_of_document in ids:
            what = "no token" if len(ids) == 0 else f"the end-of-document id {self.end_of_document} as text"
            raise DataError(
                f"{self._corpus.label(source)}: data.tokenizer={self._tokenizer.name!r} makes {what} of it."
            )
        if len(ids) > (most := int(self._most_tokens(source))):
            name, what = self._tokenizer.name, f"{len(ids):,} tokens; allowed: at most {most:,}"
            raise DataError(f"{self._corpus.label(source)}: data.tokenizer={name!r} makes {what}.")
        return ids

    def _most_tokens(self, source: np.ndarray | int) -> np.ndarray:
        return MOST_TOKENS * (self._corpus.size_D[source] + 100)


def _save(file: pathlib.Path, counts_D: np.ndarray) -> None:
    """All or nothing, also when several processes write the same counts."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with written(file) as out:
        np.save(out, counts_D)


class _Counting:
    """Says how far the counting of tokens is, and once, where it takes long, what would not."""

    def __init__(self, num_bytes: int, documents: int, log: Callable[[str], None]):
        self._num_bytes, self._documents, self._log = num_bytes, documents, log
        self._seen, self._began, self._advised = 0, time.monotonic(), False
        self._clock = self._began

    def counted(self, documents: int, num_bytes: int) -> None:
        self._seen += num_bytes
        now = time.monotonic()
        if now - self._clock <= PROGRESS_SECONDS:
            return
        self._clock = now
        rate = self._seen / (now - self._began)
        left = (self._num_bytes - self._seen) / rate
        self._log(
            f"data: counted the tokens of {documents:,} of {self._documents:,} documents, {rate / 1e6:,.2f} MB/s, "
            f"about {left / 60:,.1f} minutes left"
        )
        if left > PAYS_SECONDS and not self._advised:
            self._advised = True
            self._log(
                "data: every document is encoded again where it is used; mm01-tokenize makes tokens once, on every "
                "processor, and a run on them (data.source=their folder) starts at once and has the same rows"
            )
