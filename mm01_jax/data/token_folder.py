"""A folder of tokens that `mm01-tokenize` has finished, read by position: no text, no tokenizer, no pass over it.

What is said of the documents (12 bytes of memory each) is read at the start and compared with its digests; the tokens
are compared with theirs as they are read: with four bytes of sha256, beside the hash that ArrayRecord has of a record.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from mm01_jax.data import reading, token_files
from mm01_jax.data.corpus import FileSummary, fingerprint
from mm01_jax.data.sources import SUFFIXES
from mm01_jax.data.text import DataError
from mm01_jax.data.token_files import FILES, LISTED, MANIFEST, MOST_DOCUMENTS, MOST_MANIFEST, ids_digest
from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.files import shown

_OPEN = 64  # files of tokens that are open at a time, each with an index of its records in memory
_KEPT = 16  # documents whose tokens are kept: one that goes on over many rows is read once, not once a row
_KEPT_OF_DIGEST = 0xFFFFFFFF  # of the ids


class TokenFolder:
    """Documents D in the order of the text that they were made of, with the fingerprint of that text.

    num_tokens_D: uint32. size_D: bytes of text, uint32 where none has more than that.

    Args:
      see: called with the `token_files.INDEX` of each shard, in their order.

    Raises:
      DataError: work that is not finished; a file that is missing, damaged, or another tokenization's.
    """

    def __init__(self, folder: str, see: Callable[[np.ndarray], None] = lambda index: None):
        self._folder = pathlib.Path(folder)
        self.manifest = _manifest(self._folder)
        self.name = folder
        self.fingerprint: str = self.manifest["fingerprint"]
        self.files = {
            name: FileSummary(documents=documents, size=size, digest=digest)
            for name, (documents, size, digest) in self.manifest["files"].items()
        }
        self.num_files: int = self.manifest["num_files"]
        self.bad = tuple(self.manifest["bad_records"])
        self._itemsize = np.dtype(self.manifest["dtype"]).itemsize
        shards = self.manifest["shards"]
        _check_files(self._folder, shards, self._itemsize)
        self._first_S = np.cumsum([0, *(shard[0] for shard in shards)])  # document of each shard
        documents = int(self._first_S[-1])
        self.num_tokens_D, self._ids_D, self.size_D = np.empty((3, documents), np.uint32)
        for number in range(len(shards)):
            self._read_index(number, see)
        self._check_totals()
        self._reader = functools.lru_cache(maxsize=_OPEN)(self._open)
        self.tokens = functools.lru_cache(maxsize=_KEPT)(self._tokens)

    def __len__(self) -> int:
        return len(self.num_tokens_D)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """DataError where the tokens are another tokenizer's."""
        if tokenizer.fingerprint != self.manifest["tokenizer"]:
            raise DataError(
                f"{self._folder} has tokens of another tokenizer: data.tokenizer={tokenizer.name!r} has the "
                f"fingerprint {tokenizer.fingerprint[:16]}, the tokens {shown(self.manifest['tokenizer'])[:16]}. "
                f"The tokenizer that made them lies beside them, unless it was 'bytes'."
            )

        for name in ("vocab_size", "end_of_document"):
            if (said := self.manifest[name]) != (value := getattr(tokenizer, name)):
                raise DataError(f"{self._folder / MANIFEST}: {name} is {said}; that of its own tokenizer is {value}.")

    def label(self, document: int) -> str:
        """How a person finds a document."""
        shard = self._shard(document)
        name = token_files.paths("", shard).tokens.name
        return f"{shown(self._folder)}: {name} document {document - int(self._first_S[shard])}"

    def source(self, document: int) -> tuple[str, int]:
        """(file, place in it) of the text: a byte offset, or the number of a record."""
        shard = self._shard(document)
        path = token_files.paths(self._folder, shard).summary
        names = FILES.json(path, root=self._folder, most=MOST_MANIFEST).get("files")
        row = self._index(shard)[document - int(self._first_S[shard])]
        if type(names) is not list or not row["file"] < len(names):
            raise DataError(f"{path} does not name the file that document {document} is of.")
        return shown(names[row["file"]]), int(row["key"])

    def _shard(self, document: int) -> int:
        return int(np.searchsorted(self._first_S, document, side="right")) - 1

    def _index(self, shard: int) -> np.ndarray:
        documents, _, _, _, sha256 = self.manifest["shards"][shard]
        return token_files.read_index(self._folder, shard, documents, sha256)

    def _read_index(self, shard: int, see: Callable[[np.ndarray], None]) -> None:
        first, last = self._first_S[shard : shard + 2]
        if first == last:
            return
        index = self._index(shard)
        if (total := int(index["tokens"].sum(dtype=np.uint64))) != (said := self.manifest["shards"][shard][1]):
            raise DataError(f"{token_files.paths(self._folder, shard).index}: {total:,} tokens; {MANIFEST}: {said:,}.")
        if not index["tokens"].all():
            raise DataError(f"{token_files.paths(self._folder, shard).index} has a document without tokens.")
        if self.size_D.dtype == np.uint32 and index["size"].max() >> 32:  # a text of more than 4 GB
            self.size_D = self.size_D.astype(np.uint64)
        self.num_tokens_D[first:last], self.size_D[first:last] = index["tokens"], index["size"]
        self._ids_D[first:last] = index["ids"] & _KEPT_OF_DIGEST
        see(index)

    def _check_totals(self) -> None:
        sums = {"documents": len(self)}
        for name, values_D in (("tokens", self.num_tokens_D), ("text_bytes", self.size_D)):
            sums[name] = int(values_D.sum(dtype=np.uint64))
        for name, value in sums.items():
            if value != self.manifest[name] or not value:
                said = f"{name} is {self.manifest[name]:,}, its shards have {value:,}"
                raise DataError(f"{self._folder / MANIFEST}: {said}.")
        listed = {"num_files": len(self.files), "bad": len(self.bad)}  # of more than LISTED not all are
        for name, value in listed.items():
            if value < min(self.manifest[name], LISTED) or value > self.manifest[name]:
                said = f"{name} is {self.manifest[name]:,}, and {value:,} are named"
                raise DataError(f"{self._folder / MANIFEST}: {said}.")
        if self.files and self.fingerprint != fingerprint(self.files):
            raise DataError(f"{self._folder / MANIFEST}: its fingerprint is not that of the files it names.")
        for name, most in (("documents_dropped", "documents"), ("dropped", "text_bytes")):
            if (value := self.manifest[name]) > sums[most]:
                raise DataError(f"{self._folder / MANIFEST}: {name} is {value:,}, more than {most}, {sums[most]:,}.")

    def _open(self, shard: int):
        from mm01_jax.data.array_record import ArrayRecordFile  # loads a native library that only this kind needs

        path = token_files.paths(self._folder, shard).tokens
        FILES.check(path, root=self._folder)
        file = ArrayRecordFile(str(path), path)
        file.check_chunks(self.manifest["shards"][shard][0])
        return file

    def _tokens(self, document: int) -> np.ndarray:
        """int32 ids of a document; DataError where they are not those that were written."""
        return self._checked(document, self._reader(self._shard(document)).record(self._number(document)))

    def several(self, documents: Sequence[int]) -> list[np.ndarray]:
        """`tokens` of some documents, read together."""
        files = [self._reader(self._shard(document)) for document in documents]
        numbers = map(self._number, documents)
        records = reading.single([(one.name, str(one.path), at) for one, at in zip(files, numbers, strict=True)])
        return [self._checked(document, record) for document, record in zip(documents, records, strict=True)]

    def _number(self, document: int) -> int:
        """Which of its shard's it is."""
        return document - int(self._first_S[self._shard(document)])

    def _checked(self, document: int, record: bytes) -> np.ndarray:
        whole = len(record) == int(self.num_tokens_D[document]) * self._itemsize
        if not whole or ids_digest(record) & _KEPT_OF_DIGEST != self._ids_D[document]:
            raise DataError(f"{self.label(document)} is damaged: its ids are not those that were written.")
        ids = np.frombuffer(record, self.manifest["dtype"]).astype(np.int32)
        low, high, end = int(ids.min()), int(ids.max()), self.manifest["end_of_document"]
        if low < 0 or high >= self.manifest["vocab_size"] or (ids == end).any():
            allowed = f"0 to {self.manifest['vocab_size'] - 1} but {end}, which ends a document"
            raise DataError(f"{self.label(document)} has ids {low} to {high}; allowed are {allowed}.")
        ids.flags.writeable = False  # it is kept
        return ids


class FolderDocuments:
    """`packing.TokenDocuments` over some documents of a folder of tokens."""

    def __init__(self, folder: TokenFolder, chosen_D: np.ndarray):
        self._folder, self._chosen_D = folder, chosen_D.astype(np.min_scalar_type(len(folder)))
        self.num_tokens_D = folder.num_tokens_D[chosen_D]
        self.num_bytes = int(folder.size_D[chosen_D].sum(dtype=np.uint64))
        self.end_of_document: int = folder.manifest["end_of_document"]

    @property
    def targets_per_byte(self) -> float:
        """Predicted tokens over bytes of text: nats a target / ln 2 * this = bits a byte."""
        return int(self.num_tokens_D.sum(dtype=np.uint64)) / self.num_bytes

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        """int32 tokens [start, stop) of a document."""
        return self._folder.tokens(int(self._chosen_D[document]))[start:stop]

    def several(self, spans: Sequence[tuple[int, int, int]]) -> list[np.ndarray]:
        """As `tokens` of each (document, start, stop)."""
        found = self._folder.several([int(self._chosen_D[document]) for document, _, _ in spans])
        return [ids[start:stop] for ids, (_, start, stop) in zip(found, spans, strict=True)]


def _manifest(folder: pathlib.Path) -> dict:
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise DataError(f"{folder} holds unfinished work of mm01-tokenize; the same command goes on with it.")
    return token_files.check(FILES.json(path, root=folder, most=MOST_MANIFEST), token_files.MANIFEST_KINDS, path)


def _check_files(folder: pathlib.Path, shards: list[list], itemsize: int) -> None:
    """Every file of tokens is there, of a size that holds its tokens, and no other one."""
    wanted = {}
    for number, (documents, tokens, size, _, _) in enumerate(shards):
        if documents:
            paths = token_files.paths(folder, number)
            if documents > min(tokens, MOST_DOCUMENTS) or tokens * itemsize > size:
                said = f"shard {number} has {documents:,} documents of {tokens:,} tokens in {size:,} bytes"
                allowed = f"at most {MOST_DOCUMENTS:,}, of a token or more, each of {itemsize} bytes"
                raise DataError(f"{folder / MANIFEST}: {said}; allowed: {allowed}.")
            wanted[paths.tokens.name] = size
            wanted[paths.index.name] = documents * token_files.INDEX.itemsize
    with FILES.errors(folder), os.scandir(folder) as entries:
        there = {entry.name for entry in entries}
    for name, size in wanted.items():
        if name not in there:
            raise DataError(f"{folder / name} is missing: {MANIFEST} has it with {size:,} bytes.")
        FILES.check(folder / name, root=folder)
        with FILES.errors(folder / name):
            found = os.stat(folder / name).st_size
        if found != size:
            raise DataError(f"{folder / name} has {found:,} bytes; {size:,} were written.")
    others = [name for name in there - wanted.keys() if name.endswith((".index", *SUFFIXES))]
    if others:
        raise DataError(f"{folder / shown(min(others))} is no file of this tokenization; {MANIFEST} does not have it.")
