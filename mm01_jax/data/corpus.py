"""A corpus: every good document of a list of shards, by index, with the digests that say which corpus it is."""

import array
import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator

import numpy as np

from mm01_jax.data.conversation_files import Conversation
from mm01_jax.data.text import PROGRESS_SECONDS, DataError, Record, Seen, Shard, Unreadable
from mm01_jax.files import shown, why
from mm01_jax.messages import counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSummary:
    """What one shard holds; the fingerprint of a corpus is made of these."""

    documents: int
    size: int  # bytes of text
    digest: str  # sha256 of its documents' digests, in order


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Documents D of all shards in order, about 40 bytes of memory each; the text stays on disk."""

    shards: tuple[Shard, ...]
    shard_D: np.ndarray  # int64, index into `shards`
    key_D: np.ndarray  # int64, where the shard finds the document
    size_D: np.ndarray  # int64, bytes of UTF-8
    digest_D2: np.ndarray  # uint64, the first 16 bytes of the text's sha256
    files: dict[str, FileSummary]
    bad: tuple[str, ...]  # the records that were skipped, each with its reason

    def __len__(self) -> int:
        return len(self.size_D)

    @property
    def num_files(self) -> int:
        return len(self.files)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.files)

    def read(self, document: int, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of a document."""
        stop = int(self.size_D[document]) if stop is None else stop
        try:
            return self.shards[self.shard_D[document]].read(
                int(self.key_D[document]), start, stop, self.digest_D2[document].tobytes()
            )
        except (OSError, Unreadable) as error:
            raise DataError(f"{self.label(document)} cannot be read any more: {why(error)}") from error

    def conversation(self, document: int) -> Conversation:
        """A document of a shard of conversations; DataError when it is none any more."""
        shard = self.shards[self.shard_D[document]]
        try:
            place = int(self.key_D[document]), int(self.size_D[document])
            return shard.conversation(*place, self.label(document), self.digest_D2[document].tobytes())
        except (OSError, ValueError) as error:
            raise DataError(f"{self.label(document)} changed while in use: {error}") from error

    def reads_ranges(self, document: int) -> bool:
        """Whether a range of a document costs no more than its own length."""
        return self.shards[self.shard_D[document]].reads_ranges

    def label(self, document: int) -> str:
        """How a person finds a document: its file, and which of the file's documents it is."""
        shard = self.shard_D[document]
        return f"{shown(self.shards[shard].name)} document {document - int(np.searchsorted(self.shard_D, shard))}"


def fingerprint(files: dict[str, FileSummary]) -> str:
    """sha256 over the files' names, sizes and content, in order of names."""
    sha = hashlib.sha256(b"mm01 corpus 1")
    for name, file in files.items():
        sha.update(f"{name}\0{file.documents} {file.size} {file.digest}\0".encode(errors="surrogatepass"))
    return sha.hexdigest()


def scan_corpus(shards: list[Shard], max_bad_records: int, log: Callable[[str], None]) -> Corpus:
    """Reads every byte once: checks the text, and finds where documents lie.

    Raises:
      DataError: a broken file, more than `max_bad_records` bad records, the same file of records twice, no text.
    """
    places_D3, digests, files, bad = array.array("q"), bytearray(), {}, []
    progress = _Progress(shards, log)
    for index, shard in enumerate(shards):
        first = len(digests)
        for record in _scan(shard, progress.seen):
            if record.problem is None:
                places_D3.extend((index, record.key, record.size))
                digests += record.digest
            else:
                bad.append(shown(f"{record.label}: {record.problem}"))
                _check_bad(bad, max_bad_records)
        progress.files += 1
        documents = (len(digests) - first) // 16
        size = sum(places_D3[len(places_D3) - 3 * documents + 2 :: 3])
        digest = hashlib.sha256(digests[first:]).hexdigest()
        files[shard.name] = FileSummary(documents=documents, size=size, digest=digest)
    check_duplicates(files)
    if not digests:
        raise DataError(f"No document is left of {len(shards)} files: {'; '.join(bad[:5])}.")
    shard_D, key_D, size_D = np.frombuffer(places_D3, np.int64).reshape(-1, 3).T
    return Corpus(
        shards=tuple(shards),
        shard_D=shard_D,
        key_D=key_D,
        size_D=size_D,
        digest_D2=np.frombuffer(digests, "<u8").reshape(-1, 2),
        files=files,
        bad=tuple(bad),
    )


class _Progress:
    """A line every few seconds of how much has been looked at; `files` of the shards are done."""

    def __init__(self, shards: list[Shard], log: Callable[[str], None]):
        self.files = 0
        self._shards, self._log, self._bytes, self._clock = shards, log, 0, time.monotonic()

    def seen(self, size: int) -> None:
        self._bytes += size
        if time.monotonic() - self._clock > PROGRESS_SECONDS:
            self._clock = time.monotonic()
            place = f"file {self.files + 1} of {len(self._shards)} ({shown(self._shards[self.files].name)})"
            self._log(f"data: read {self._bytes / 1e6:,.0f} MB, {place}")


def _scan(shard: Shard, seen: Seen) -> Iterator[Record]:
    try:
        yield from shard.scan(seen)
    except (OSError, Unreadable) as error:
        raise DataError(f"{shown(shard.name)} cannot be read: {why(error)}") from error


def too_many_bad(number: int, setting: str, allowed: int) -> str:
    """The start of the message of who stops at a bad record, whose number is `number`."""
    if not allowed:
        return f"a bad record, and {setting}=0 allows none"
    return f"{counted(number, 'bad record')}, more than {setting}={allowed} allows"


def _check_bad(bad: list[str], allowed: int) -> None:
    if len(bad) > allowed:
        raise DataError(
            f"{too_many_bad(len(bad), 'data.max_bad_records', allowed)}: {'; '.join(bad[-5:])}. "
            "Repair or remove it and others like it, or raise data.max_bad_records to skip and count them."
        )


def check_duplicates(files: dict[str, FileSummary]) -> None:
    """A shard of many records that is there twice is a copying mistake; a single text may repeat."""
    seen: dict[str, str] = {}
    for name, file in files.items():
        if file.documents > 1 and (first := seen.setdefault(file.digest, name)) != name:
            raise DataError(f"{name} holds the same {file.documents} documents as {first}; remove one of them.")
