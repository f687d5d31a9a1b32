"""One shard of tokens: made of its pieces of the source, and looked at again.

Whatever stops it, a shard is there whole or not at all: its summary is written last and says the digests of the rest.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from mm01_jax import holes
from mm01_jax.data import token_files
from mm01_jax.data.corpus import too_many_bad
from mm01_jax.data.text import BLOCK, DataError, Record, Seen, Unreadable
from mm01_jax.data.token_files import COUNT, FILES, LISTED, MOST_MANIFEST, TEXT, ids_digest, index_row
from mm01_jax.data.tokenize.plan import Plan
from mm01_jax.files import OF_THE_DISK, remove, shown, why, write, written

BATCH_BYTES, BATCH_TEXTS = 1 << 20, 512  # encoded together
SUMMARY: token_files.Kinds = {
    "documents": COUNT,
    "tokens": COUNT,
    "text_bytes": COUNT,
    "dropped": COUNT,  # characters that have no token
    "documents_dropped": COUNT,  # that have such characters
    "bad": COUNT,
    "bad_records": (list, lambda value: all(isinstance(label, str) for label in value)),
    "files": (list, lambda value: all(isinstance(name, str) for name in value)),
    "tokens_bytes": COUNT,
    "tokens_sha256": TEXT,
    "index_sha256": TEXT,
}
_WRITING = "group_size:1,uncompressed"  # a record is read without those beside it


def make(plan: Plan, shard: int, seen: Seen = lambda size: None) -> dict[str, Any]:
    """Makes a shard; its summary.

    Args:
      seen: told how many bytes more of the source have been read.

    Raises:
      DataError: a source that cannot be read, too many bad records, an id that text must not have.
    """
    paths = token_files.paths(plan.out, shard)
    made = _Shard(plan)
    with written(paths.tokens) as tokens, written(paths.index) as index:
        from array_record.python.array_record_module import ArrayRecordWriter  # loads a native library

        with _disk_errors(paths.tokens):
            writer = ArrayRecordWriter(tokens.name, _WRITING)
        for pieces in _batches(plan, shard, seen, made.skip):
            for file, record, num_tokens, content in made.encode(pieces):
                with _disk_errors(paths.tokens):
                    writer.write(content)
                made.add(file, record, num_tokens, content)
        with _disk_errors(paths.tokens):
            writer.close()
        index.write(rows := b"".join(made.rows))
        sizes = {"tokens_bytes": os.fstat(tokens.fileno()).st_size, "tokens_sha256": _sha256(tokens)}
    summary = made.counts | {"files": [piece.shard.name for piece in plan.shards[shard]]}
    summary |= sizes | {"index_sha256": hashlib.sha256(rows).hexdigest()}
    if not summary["documents"]:  # a file without a record is none that can be read
        remove(paths.tokens, plan.out)
        remove(paths.index, plan.out)
        summary |= {"tokens_bytes": 0, "tokens_sha256": "", "index_sha256": ""}
    write(paths.summary, (json.dumps(summary, indent=1) + "\n").encode())
    return summary


@contextlib.contextmanager
def _disk_errors(path: pathlib.Path) -> Iterator[None]:
    """A context in which what the writer of records says of the disk is an OSError, as it is of other files."""
    try:
        yield
    except RuntimeError as error:
        codes = [code for code in OF_THE_DISK if os.strerror(code) in str(error)]
        raise OSError(codes[0] if codes else errno.EIO, shown(why(error)), str(path)) from error


Texts = list[tuple[int, Record, bytes]]  # number of the piece, what was found, its text


def _batches(plan: Plan, shard: int, seen: Seen, skip: Callable[[Record], None]) -> Iterator[Texts]:
    batch, size = [], 0
    for number, piece in enumerate(plan.shards[shard]):
        try:
            for record, text in piece.shard.documents(seen):
                if problem := record.problem or plan.tokenizer.problem(text):
                    skip(record._replace(problem=problem))
                    continue
                batch.append((number, record, text))
                size += len(text)
                if size >= BATCH_BYTES or len(batch) == BATCH_TEXTS:
                    yield batch
                    batch, size = [], 0
        except (OSError, Unreadable) as error:
            raise DataError(f"{shown(piece.shard.name)} cannot be read: {why(error)}.") from error
    if batch:
        yield batch


class _Shard:
    """What has been found of a shard so far."""

    def __init__(self, plan: Plan):
        self.rows: list[bytes] = []
        self.counts: dict[str, Any] = dict.fromkeys(
            ("documents", "tokens", "text_bytes", "dropped", "documents_dropped", "bad"), 0
        )
        self.counts["bad_records"] = []
        self._plan = plan

    def skip(self, record: Record) -> None:
        self.counts["bad"] += 1
        label = shown(f"{record.label}: {record.problem}")
        if len(self.counts["bad_records"]) < LISTED:
            self.counts["bad_records"].append(label)
        check_bad(self.counts["bad"], [label], self._plan.asked.max_bad_records)

    def encode(self, batch: Texts) -> Iterator[tuple[int, Record, int, bytes]]:
        """(number of the piece, what was found, number of tokens, the record) of each text."""
        encoded = self._plan.tokenizer.encode_many([text for _, _, text in batch])
        lengths, lost = [len(ids) for ids, _ in encoded], [lost for _, lost in encoded]
        together = encoded[0][0] if len(encoded) == 1 else np.concatenate([ids for ids, _ in encoded])
        if not all(lengths) or self._wrong(together):
            for (_, record, _), (ids, _) in zip(batch, encoded, strict=True):
                if wrong := self._wrong(ids):
                    raise DataError(f"{shown(record.label)}: --tokenizer={self._plan.tokenizer.name!r} makes {wrong}.")
        del encoded  # of a long text, ids are four times its bytes
        together = together.astype(self._plan.dtype)
        content, itemsize, at = together.tobytes(), together.itemsize, 0
        del together
        for (file, record, _), length, gone in zip(batch, lengths, lost, strict=True):
            self.counts["dropped"] += gone
            self.counts["documents_dropped"] += gone > 0
            stop = at + length * itemsize
            yield file, record, length, content[at:stop]
            at = stop

    def _wrong(self, ids: np.ndarray) -> str:
        """What no document may be; "" where these ids may."""
        tokenizer = self._plan.tokenizer
        if len(ids) == 0:
            return "no token of it"
        if (ids == tokenizer.end_of_document).any():
            return f"the end-of-document id {tokenizer.end_of_document} as text of it"
        if ids.min() < 0 or ids.max() >= tokenizer.vocab_size or len(ids) >= 1 << 32:
            return "ids beyond its own"
        return ""

    def add(self, file: int, record: Record, num_tokens: int, content: bytes) -> None:
        row = (num_tokens, record.size, record.digest, ids_digest(content), file, record.key)
        self.rows.append(index_row(row))
        for name, more in (("documents", 1), ("tokens", num_tokens), ("text_bytes", record.size)):
            self.counts[name] += more


def check_bad(number: int, last: list[str], allowed: int) -> None:
    """DataError where there are more bad records than are allowed; `last` are some of them."""
    if number > allowed:
        raise DataError(
            f"{too_many_bad(number, '--max-bad-records', allowed)}: {'; '.join(last[-5:])}. "
            "Repair or remove it and others like it, or raise --max-bad-records to skip and count them."
        )


def read_summary(folder, shard: int) -> dict[str, Any] | None:
    """What is said of a shard; None where it has not been made."""
    path = token_files.paths(folder, shard).summary
    if not os.path.lexists(path):
        return None
    return token_files.check(FILES.json(path, root=folder, most=MOST_MANIFEST), SUMMARY, path)


def problem(folder, shard: int, summary: dict[str, Any], seen: Seen = lambda size: None) -> str | None:
    """What is wrong with a shard, every byte of it looked at; None where it is as it was written.

    Args:
      seen: told how many bytes more of the tokens have been read.
    """
    paths = token_files.paths(folder, shard)
    if not summary["documents"]:
        return None
    try:
        index = token_files.read_index(folder, shard, summary["documents"], summary["index_sha256"])
        for name, column in (("tokens", "tokens"), ("text_bytes", "size")):
            total = int(index[column].sum(dtype=np.uint64))
            if summary.get(name, total) != total:
                return f"{paths.summary}: {name} is {summary[name]:,}, the documents have {total:,}"
        with FILES.open(paths.tokens, root=folder) as file:
            if (size := os.fstat(file.fileno()).st_size) != summary["tokens_bytes"]:
                return f"{paths.tokens} has {size:,} bytes, {summary['tokens_bytes']:,} were written"
            with FILES.errors(paths.tokens):
                holes.refuse(file)
            if _sha256(file, seen) != summary["tokens_sha256"]:
                return f"{paths.tokens} is not what was written: its sha256 is another"
    except DataError as error:
        return str(error)
    return None


def _sha256(file: BinaryIO, seen: Seen = lambda size: None) -> str:
    """Of a whole file, as it lies there."""
    total = hashlib.sha256()
    file.seek(0)
    while block := file.read(BLOCK):
        total.update(block)
        seen(len(block))
    return total.hexdigest()
