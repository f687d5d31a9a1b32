"""What is to be tokenized, cut into shards: a function of the source's listing alone, never of workers or machines.

files    a.txt b.txt | c.jsonl ................ | d.jsonl
shards   0           | 1      2      3          | 3 goes on       each of about `shard_bytes` of source
"""

import hashlib
import json
import os
import pathlib
import platform
from importlib import metadata
from typing import Any, NamedTuple

from mm01_jax import taken
from mm01_jax.data import token_files
from mm01_jax.data.json_lines import JsonLines
from mm01_jax.data.recall import is_of_python
from mm01_jax.data.sources import find_shards
from mm01_jax.data.text import DataError, Shard
from mm01_jax.data.token_files import COUNT, DIGEST, DTYPE, FILES, FORMAT, PLAN, TEXT
from mm01_jax.data.tokenizer import TOKENIZER_FILE, FileTokenizer, Tokenizer, open_tokenizer, save_beside
from mm01_jax.files import quoted, write

MOST_SHARDS = 100_000
MOST_FILES = 50_000  # of a shard: its summary names them
_KINDS: token_files.Kinds = {
    "format": (str, lambda value: value == FORMAT),
    "listing": DIGEST,
    "files": COUNT,
    "bytes": COUNT,
    "shards": COUNT,
    "shard_bytes": COUNT,
    "text_field": TEXT,
    "max_bad_records": COUNT,
    "tokenizer": TEXT,
    "tokenizers": TEXT,
    "vocab_size": COUNT,
    "end_of_document": COUNT,
    "dtype": DTYPE,
    "python": TEXT,
}


class Asked(NamedTuple):
    """What a person asks for, as a worker is told it."""

    source: str
    tokenizer: str
    out: str
    shard_bytes: int
    text_field: str = "text"
    max_bad_records: int = 0


class Piece(NamedTuple):
    """What is read together: a file, or of a file of lines the bytes [start, stop)."""

    shard: Shard
    start: int
    stop: int


class Plan(NamedTuple):
    """What becomes of the source. shards: of each its pieces, in order. facts: what `PLAN` says."""

    asked: Asked
    tokenizer: Tokenizer
    shards: tuple[tuple[Piece, ...], ...]
    facts: dict[str, Any]

    @property
    def out(self) -> pathlib.Path:
        return pathlib.Path(self.asked.out)

    @property
    def harmless(self) -> str | None:
        """The tokenizer's fingerprint, where it is a file that needs no process of its own."""
        return self.tokenizer.fingerprint if getattr(self.tokenizer, "is_harmless", False) else None

    @property
    def dtype(self) -> str:
        """Of the ids on disk."""
        return self.facts["dtype"]


def make(asked: Asked, log=lambda line: None, harmless: str | None = None) -> Plan:
    """The plan of what is asked for; ValueError or DataError where it cannot be. harmless: of `FileTokenizer`."""
    tokenizer = open_tokenizer(asked.tokenizer, harmless)
    found = find_shards(asked.source, asked.text_field, log=log)
    _check_apart(asked)
    sizes = [shard.size for shard in found]
    listing = hashlib.sha256()
    for shard, size in zip(found, sizes, strict=True):
        listing.update(f"{shard.name}\0{size}\0".encode())
    shards = _cut(found, sizes, asked.shard_bytes)
    if len(shards) > MOST_SHARDS:
        raise ValueError(f"--shard-bytes={asked.shard_bytes} makes {len(shards):,} shards; allowed: {MOST_SHARDS:,}")
    facts = {
        "format": FORMAT,
        "listing": listing.hexdigest(),
        "files": len(found),
        "bytes": sum(sizes),
        "shards": len(shards),
        "shard_bytes": asked.shard_bytes,
        "text_field": asked.text_field,
        "max_bad_records": asked.max_bad_records,
        "tokenizer": tokenizer.fingerprint,
        # Whose version may decide which ids a text has.
        "tokenizers": metadata.version("tokenizers") if isinstance(tokenizer, FileTokenizer) else "none",
        "vocab_size": tokenizer.vocab_size,
        "end_of_document": tokenizer.end_of_document,
        "dtype": "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32",
        "python": platform.python_version() if is_of_python(asked.source) else "any",
    }
    return Plan(asked, tokenizer, shards, facts)


def _check_apart(asked: Asked) -> None:
    """Refuses a folder of tokens inside the folder that is read, which would be no text's any more."""
    source, out = pathlib.Path(asked.source), pathlib.Path(asked.out)
    if source.is_dir() and out.resolve() != source.resolve() and out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"--out={asked.out}: lies in --source={asked.source}; allowed: a folder beside it")
    if whole := taken.at(asked.out, but=taken.TOKENS):
        raise ValueError(f"--out={asked.out}: {whole}; allowed: a folder of its own")


def make_again(asked: Asked, facts: dict[str, Any], harmless: str | None) -> Plan:
    """The plan whose facts another process has; DataError where it is another one here."""
    plan = make(asked, harmless=harmless)
    if plan.facts != facts:
        raise DataError("the source or the tokenizer changed while in use; run the same command again.")
    return plan


def _cut(found: list[Shard], sizes: list[int], shard_bytes: int) -> tuple[tuple[Piece, ...], ...]:
    shards: list[list[Piece]] = [[]]
    filled = 0
    for shard, size in zip(found, sizes, strict=True):
        step = shard_bytes if isinstance(shard, JsonLines) and size > 2 * shard_bytes else max(size, 1)
        for start in range(0, max(size, 1), step):
            if filled >= shard_bytes or len(shards[-1]) >= MOST_FILES:
                shards.append([])
                filled = 0
            stop = min(start + step, size)
            part = shard if stop - start == size else shard.part(start, stop)
            shards[-1].append(Piece(part, start, stop))
            filled += stop - start
    return tuple(map(tuple, shards))


def keep(plan: Plan) -> None:
    """Writes `PLAN` and the tokenizer beside it, or compares with the plan that is there.

    Raises:
      DataError: the folder is of another plan; names what is different.
      ValueError: the folder has files that are no tokens.
    """
    path = plan.out / PLAN
    FILES.folder(plan.out)
    if not os.path.lexists(path):
        # Another machine may be writing what this one is about to.
        ours = (".", PLAN, TOKENIZER_FILE, "tokens-")
        if others := sorted(p.name for p in plan.out.iterdir() if not p.name.startswith(ours)):
            raise ValueError(f"--out={plan.out} has {quoted(others[0])} in it; allowed: a new or an empty folder")
        save_beside(plan.tokenizer, plan.out)
        write(path, (json.dumps(plan.facts, indent=1) + "\n").encode())
        return
    saved = read(plan.out)
    changes = [
        f"{name} was {quoted(saved[name])}, is {quoted(value)}"
        for name, value in plan.facts.items()
        if saved[name] != value
    ]
    if changes:
        raise DataError(f"{path} is of other work: {'; '.join(changes)}. Go on with the same, or name another --out.")


def read(folder: pathlib.Path | str) -> dict[str, Any]:
    """The facts of a folder's plan."""
    path = pathlib.Path(folder) / PLAN
    return token_files.check(FILES.json(path, root=folder), _KINDS, path)
