"""What a source of data holds, for a person: counts, lengths, samples, and what was skipped and why."""

import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from mm01_jax.data import token_files
from mm01_jax.data.corpus import scan_corpus
from mm01_jax.data.sources import find_shards
from mm01_jax.data.text import PROGRESS_SECONDS, DataError, Seen
from mm01_jax.data.token_files import FILES, is_token_folder
from mm01_jax.data.token_folder import TokenFolder
from mm01_jax.data.tokenizer import TOKENIZER_FILE, BytesTokenizer, open_tokenizer
from mm01_jax.files import shown, written
from mm01_jax.messages import listing, say

_BAR = 40  # characters of the longest bar
_MOST_BAD = 100_000  # records that are skipped and counted: what has more is no text
_SAMPLE = 160  # characters of a sample that are shown
Log = Callable[[str], None]


class Found(NamedTuple):
    """lengths_D: int64, of each document, in `unit`. samples: (label, beginning of the text). skipped: with reasons."""

    facts: dict[str, str]
    unit: str
    lengths_D: np.ndarray
    samples: list[tuple[str, str]]
    skipped: tuple[str, ...]
    num_skipped: int


def inspect(source: str, *, samples: int, verify: bool, text_field: str = "text", log: Log = say) -> Found:
    """Looks at a folder of tokens, or at every byte of a text.

    Args:
      verify: look at every byte of the tokens, too.

    Raises:
      DataError: what is damaged, by name.
    """
    if is_token_folder(source):
        return _tokens(source, samples, verify, log)
    return _text(source, samples, text_field, log)


def _tokens(source: str, samples: int, verify: bool, log: Log) -> Found:
    folder = TokenFolder(source)
    manifest = folder.manifest
    if verify:
        _verify(folder, log)
    kept = os.path.join(source, TOKENIZER_FILE)
    in_bytes = manifest["tokenizer"] == BytesTokenizer.fingerprint
    if not in_bytes:
        FILES.check(kept, root=source)
    tokenizer = BytesTokenizer() if in_bytes else open_tokenizer(kept)
    folder.check_tokenizer(tokenizer)
    if lost := tokenizer.loses_blanks:
        log(f"data: {lost}")
    tokens, text_bytes = manifest["tokens"], manifest["text_bytes"]
    facts = {
        "documents": f"{len(folder):,} of {folder.num_files:,} files",
        "tokens": f"{tokens:,}, {text_bytes / tokens:.2f} bytes each",
        "bytes": f"{text_bytes:,}",
        "shards": f"{len(manifest['shards']):,}, ids as {manifest['dtype']}" + (", every byte verified" * verify),
        "tokenizer": f"{shown(manifest['tokenizer'])[:16]}, {manifest['vocab_size']:,} ids",
        "dropped": f"{manifest['dropped']:,} characters of {manifest['documents_dropped']:,} documents have no token",
        "fingerprint": folder.fingerprint,
    }

    def sample(document: int) -> tuple[str, str]:
        name, key = folder.source(document)
        return f"{name} at {key}", tokenizer.decode(folder.tokens(document)[:_SAMPLE])[:_SAMPLE]

    chosen = map(sample, _spread(len(folder), samples))
    return Found(facts, "tokens", folder.num_tokens_D.astype(np.int64), list(chosen), folder.bad, manifest["bad"])


def _verify(folder: TokenFolder, log: Log) -> None:
    from mm01_jax.data.tokenize.shard import problem, read_summary

    wrong = []
    shards = folder.manifest["shards"]
    seen = _progress(sum(size for _, _, size, _, _ in shards), "bytes", log)
    for number, shard in enumerate(shards):
        said = dict(zip(("documents", "tokens", "tokens_bytes", "tokens_sha256", "index_sha256"), shard, strict=True))
        summary = read_summary(folder.name, number) or {}
        if other := [name for name, value in said.items() if summary.get(name) != value]:
            path = token_files.paths(folder.name, number).summary
            wrong.append(f"{path}: {other[0]} is {summary.get(other[0])}, {token_files.MANIFEST} has {said[other[0]]}")
        elif found := problem(folder.name, number, said, seen):
            wrong.append(found)
    if wrong:
        raise DataError(f"{len(wrong):,} of {len(shards):,} shards are damaged: {listing(wrong)}")
    _read_all(folder, log)


def _read_all(folder: TokenFolder, log: Log) -> None:
    """Digests can be made to fit: what they fit is read as training reads it."""
    wrong, seen = [], _progress(len(folder), "documents", log)
    for document in range(len(folder)):
        try:
            folder.tokens(document)
        except DataError as error:
            wrong.append(str(error))
        seen(1)
    if wrong:
        raise DataError(f"{len(wrong):,} of {len(folder):,} documents cannot be read: {listing(wrong)}")


def _progress(total: int, unit: str, log: Log) -> Seen:
    """Counts what is verified, and says it every few seconds with the time that is left."""
    done, began = 0, time.monotonic()
    said = began

    def seen(more: int) -> None:
        nonlocal done, said
        done += more
        if (now := time.monotonic()) - said > PROGRESS_SECONDS:
            said = now
            left = (now - began) / done * (total - done)
            log(f"verified {done:,} of {total:,} {unit}, {left:,.0f} s left")

    return seen


def _text(source: str, samples: int, text_field: str, log: Log) -> Found:
    corpus = scan_corpus(find_shards(source, text_field, log=log), _MOST_BAD, log)
    facts = {
        "documents": f"{len(corpus):,} of {corpus.num_files:,} files",
        "bytes": f"{int(corpus.size_D.sum()):,}",
        "fingerprint": corpus.fingerprint,
    }
    chosen = [
        (corpus.label(document), corpus.read(document)[: 4 * _SAMPLE].decode(errors="replace")[:_SAMPLE])
        for document in _spread(len(corpus), samples)
    ]
    return Found(facts, "bytes", corpus.size_D, chosen, corpus.bad, len(corpus.bad))


def _spread(documents: int, samples: int) -> list[int]:
    """Some documents, the same ones each time."""
    count = min(documents, samples)
    seed = hashlib.sha256(str(documents).encode()).digest()[:8]
    return sorted(np.random.default_rng(int.from_bytes(seed)).choice(documents, count, replace=False).tolist())


def bins(lengths_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(least, count) of powers of two, the first to the last that has a document."""
    power_D = np.frexp(lengths_D.astype(np.float64))[1] - 1
    first, last = int(power_D.min()), int(power_D.max())
    return 2 ** np.arange(first, last + 1), np.bincount(power_D - first, minlength=last - first + 1)


def report(found: Found) -> Iterator[str]:
    """Lines for a terminal."""
    yield from (f"{name:12} {words}" for name, words in found.facts.items())
    lengths = found.lengths_D
    middle, most = int(np.median(lengths)), int(lengths.max())
    yield f"{'length':12} {int(lengths.min()):,} to {most:,} {found.unit}, half of them up to {middle:,}"
    least, counts = bins(lengths)
    for start, count in zip(least.tolist(), counts.tolist(), strict=True):
        bar = "#" * -(-_BAR * count // int(counts.max()))
        yield f"{start:>14,} {bar:{_BAR}} {count:,}"
    for label, text in found.samples:
        yield f"sample       {label}: {shown(text)!r}"
    if found.num_skipped:
        yield f"skipped      {found.num_skipped:,}: {listing(found.skipped, said=shown)}"


def draw(found: Found, path: str) -> None:
    """The histogram of lengths as a picture; its suffix says of what kind."""
    from matplotlib.figure import Figure

    least, counts = bins(found.lengths_D)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(np.arange(len(least)) + 0.5, counts, width=0.94)
    axes.set_xticks(np.arange(len(least)), [f"{start:,}" for start in least.tolist()], rotation=45, ha="right")
    axes.set(xlabel=f"{found.unit} of a document", ylabel="documents", title=f"{len(found.lengths_D):,} documents")
    with written(path) as file:
        figure.savefig(file, format=pathlib.Path(path).suffix[1:])
