"""The files of a folder of tokens, as `mm01-tokenize` writes and training reads them.

    tokens_plan.json           what is to be made: the source's size and digest, the tokenizer, the rules
    tokens-00007.arrayrecord   a record a document: its ids, little-endian, uint16 or uint32, no end of document
    tokens-00007.index         `INDEX`, 48 bytes a document, in the same order
    tokens-00007.json          counts and digests of both, written when they are whole; what was skipped, by name
    tokens.json                the manifest, written when every shard is there: what they hold together

Documents stand in the order in which training from the text has them.
"""

import hashlib
import os
import pathlib
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mm01_jax import holes
from mm01_jax.data.text import DataError
from mm01_jax.files import Door, quoted, shown

FORMAT = "mm01 tokens 1"
FILES = Door(DataError)
PLAN, MANIFEST = "tokens_plan.json", "tokens.json"
MOST_MANIFEST = 48 * 2**20
LISTED = 50_000  # files and bad records that a manifest names: it is read whole
_MOST_HOLES = 1 << 20  # bytes of a shard's index: digests are no zeros
MOST_DOCUMENTS = 20_000_000  # of a shard: its index is read whole
# tokens: ids of the document. size: bytes of its text. text: the first 16 bytes of the text's sha256; ids: the first 8
# of the record's. file: which of the files that the shard's .json names; key: where that file has the document.
INDEX = np.dtype(
    [("tokens", "<u4"), ("size", "<u8"), ("text", "<u8", (2,)), ("ids", "<u8"), ("file", "<u4"), ("key", "<u8")]
)

_ROW = struct.Struct("<IQ16sQIQ")  # of `INDEX`: NumPy takes ten times as long to make one


class Paths(NamedTuple):
    """The three files of a shard."""

    tokens: pathlib.Path
    index: pathlib.Path
    summary: pathlib.Path


def paths(folder: pathlib.Path | str, shard: int) -> Paths:
    stem = pathlib.Path(folder) / f"tokens-{shard:05d}"
    return Paths(*(stem.with_name(f"{stem.name}{suffix}") for suffix in (".arrayrecord", ".index", ".json")))


def ids_digest(record: bytes) -> int:
    """What `INDEX` has of a record."""
    return int.from_bytes(hashlib.sha256(record).digest()[:8], "little")


def index_row(values: tuple[int, int, bytes, int, int, int]) -> bytes:
    """A row of `INDEX` of its values in order."""
    return _ROW.pack(*values)


def is_token_folder(path: str | pathlib.Path) -> bool:
    """Whether a folder holds tokens, or will when mm01-tokenize has ended."""
    return any(os.path.isfile(os.path.join(path, name)) for name in (MANIFEST, PLAN))


# What the values of a JSON object may be: of every name, the kind, and a test where the kind does not say it all.
Kinds = dict[str, tuple[type, Callable[[Any], bool]]]
COUNT = (int, lambda value: 0 <= value < 2**63)
TEXT = (str, lambda value: len(value) <= 4096)
DIGEST = (str, lambda value: len(value) == 64 and not value.strip("0123456789abcdef"))
DTYPE = (str, lambda value: value in ("uint16", "uint32"))


def check(plain: dict[str, Any], kinds: Kinds, path: object) -> dict[str, Any]:
    """The object itself; DataError names the file and the first value that cannot be."""
    for name, (kind, is_allowed) in kinds.items():
        if name not in plain:
            raise DataError(f"{shown(path)}: {name} is missing: mm01-tokenize made no such file.")
        value = plain[name]
        if type(value) is not kind or not is_allowed(value):
            raise DataError(f"{shown(path)}: {name} is {quoted(value)}, which mm01-tokenize never writes.")
    if unknown := sorted(plain.keys() - kinds.keys()):
        raise DataError(f"{shown(path)}: {quoted(unknown[0])} is a name that mm01-tokenize never writes.")
    return plain


PLANNED = ("format", "text_field", "tokenizer", "tokenizers", "vocab_size", "end_of_document", "dtype", "python")
TOTALS = ("documents", "tokens", "text_bytes", "dropped", "documents_dropped", "bad")  # sums over the shards
_SHARD = (COUNT, COUNT, COUNT, TEXT, TEXT)  # documents, tokens, bytes and sha256 of the file, sha256 of the index


def _is_shard(row: Any) -> bool:
    return (
        type(row) is list
        and len(row) == len(_SHARD)
        and all(
            type(value) is kind and is_allowed(value) for value, (kind, is_allowed) in zip(row, _SHARD, strict=True)
        )
    )


def _is_file(row: Any) -> bool:
    return type(row) is list and [type(value) for value in row] == [int, int, str]


MANIFEST_KINDS: Kinds = {
    "format": (str, lambda value: value == FORMAT),
    "text_field": TEXT,
    "tokenizer": TEXT,
    "tokenizers": TEXT,
    "vocab_size": COUNT,
    "end_of_document": COUNT,
    "dtype": DTYPE,
    "python": TEXT,
    **dict.fromkeys(TOTALS, COUNT),
    "fingerprint": DIGEST,
    "num_files": COUNT,
    "files": (dict, lambda value: all(map(_is_file, value.values()))),
    "bad_records": (list, lambda value: all(isinstance(label, str) for label in value)),
    "shards": (list, lambda value: all(map(_is_shard, value))),
}


def read_index(folder: pathlib.Path | str, shard: int, documents: int, sha256: str) -> np.ndarray:
    """`INDEX` (documents,) of a shard; DataError where it is another file than its digest says."""
    path = paths(folder, shard).index
    if documents > MOST_DOCUMENTS:
        raise DataError(f"{path}: {documents:,} documents; allowed: at most {MOST_DOCUMENTS:,} in a shard.")
    with FILES.open(path, root=folder, most=documents * INDEX.itemsize) as file, FILES.errors(path):
        holes.refuse(file, _MOST_HOLES)
        content = file.read(documents * INDEX.itemsize)
    if hashlib.sha256(content).hexdigest() != sha256 or len(content) != documents * INDEX.itemsize:
        raise DataError(f"{path} is damaged: it is not the index of {documents:,} documents that was written.")
    return np.frombuffer(content, INDEX)
