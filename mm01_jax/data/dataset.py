"""A data set: from `DataConfig` to rows to train on and rows to evaluate on."""

import dataclasses
import functools
import pathlib
import platform
from collections.abc import Callable
from typing import Any

import numpy as np

from mm01_jax.config import DataConfig, VisionConfig
from mm01_jax.data import recall
from mm01_jax.data.corpus import Corpus, scan_corpus
from mm01_jax.data.packing import VERSION, PackedRows, Rows, ShuffledRows
from mm01_jax.data.samples import Samples
from mm01_jax.data.shuffle import held_out_documents, held_out_ranks
from mm01_jax.data.sources import find_shards
from mm01_jax.data.text import DataError
from mm01_jax.data.token_files import LISTED, is_token_folder
from mm01_jax.data.token_folder import FolderDocuments, TokenFolder
from mm01_jax.data.tokenized import TokenizedDocuments
from mm01_jax.data.tokenizer import Tokenizer, open_tokenizer
from mm01_jax.data.whole_rows import MixedRows, WholeRows
from mm01_jax.files import quoted, shown
from mm01_jax.messages import counted, say

NAMED = 4  # files named in a message before "and n more"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Rows of S tokens; no held-out document is ever in `train`."""

    tokenizer: Tokenizer
    corpus: Corpus | TokenFolder  # the text, or the tokens that were made of it
    train: Rows  # without end
    held_out: ShuffledRows | None  # one epoch, None when data.held_out is 0
    manifest: dict[str, Any]  # what the data is, as JSON values; `check_unchanged` compares two

    @property
    def targets_per_byte(self) -> float:
        """Predicted tokens a byte of training text: bits per byte = loss in nats / ln 2 * this."""
        return self.train.documents.targets_per_byte

    def describe(self) -> str:
        """One line for the log."""
        sizes = self.corpus.size_D
        held_out = 0 if self.held_out is None else len(self.held_out.documents.num_tokens_D)
        bad = f", {counted(len(self.corpus.bad), 'bad record')} skipped" if self.corpus.bad else ""
        return (
            f"data {self.manifest['source']}: {self.corpus.num_files:,} files, {len(sizes):,} documents, "
            f"{int(sizes.sum(dtype=np.uint64)):,} bytes, {held_out:,} documents held out{bad}, "
            f"tokenizer {self.tokenizer.name}, python {platform.python_version()}, sha256 {self.corpus.fingerprint}"
        )


def open_dataset(
    config: DataConfig,
    sequence_length: int,
    vocab_size: int,
    *,
    vision: VisionConfig | None = None,
    cache: pathlib.Path | None = None,
    log: Callable[[str], None] = say,
) -> Dataset:
    """Finds, checks and splits the data of a run. Every byte of a text is read once, and of a folder of tokens none.

    `cache` is a folder that keeps the token counts of a corpus for the next start (a tokenizer.json only). `vision` is
    the tiles of conversations with images.

    Raises:
      ValueError: a setting that cannot be (no such file, a vocabulary smaller than the tokenizer's).
      DataError: the data itself is bad.
    """
    _check(config)
    tokenizer = open_tokenizer(config.tokenizer)
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"model.vocab_size={vocab_size} is smaller than the {tokenizer.vocab_size} ids of "
            f"data.tokenizer={config.tokenizer!r}; at least {tokenizer.vocab_size} is allowed."
        )
    corpus, held_out_D = _open_corpus(config, tokenizer, log)

    def rows(chosen_D: np.ndarray, epochs: int | None) -> Rows:
        if config.records == "text":
            kind = recall.RecallDocuments if config.source.startswith(recall.PREFIX) else TokenizedDocuments
            count = functools.partial(kind.counted, tokenizer=tokenizer, cache=cache, log=log)
            documents = (FolderDocuments if isinstance(corpus, TokenFolder) else count)(corpus, chosen_D)
            return PackedRows(documents, sequence_length, config.seed, epochs)
        samples = Samples(corpus, chosen_D, tokenizer, vision, template=config.template, log=log)
        return WholeRows(samples, sequence_length, config.seed, epochs)

    train = rows(np.flatnonzero(~held_out_D), None)
    others = None
    if config.mixed_in is not None:
        others = scan_corpus(find_shards(config.mixed_in, "", config.records, log), config.max_bad_records, log)
        samples = Samples(others, np.arange(len(others)), tokenizer, vision, template=config.template, log=log)
        train = MixedRows(train, WholeRows(samples, sequence_length, config.seed), config.rows_between)
    return Dataset(
        tokenizer=tokenizer,
        corpus=corpus,
        train=train,
        held_out=ShuffledRows(rows(np.flatnonzero(held_out_D), 1)) if config.held_out else None,
        manifest=_manifest(config, corpus, tokenizer, others),
    )


def _open_corpus(
    config: DataConfig, tokenizer: Tokenizer, log: Callable[[str], None]
) -> tuple[Corpus | TokenFolder, np.ndarray]:
    """(documents, whether each is held out)."""
    if not is_token_folder(config.source):
        corpus = scan_corpus(
            find_shards(config.source, config.text_field, config.records, log), config.max_bad_records, log
        )
        return corpus, held_out_documents(held_out_ranks(corpus.digest_D2, config.seed), config.held_out)
    if config.records != "text":
        raise ValueError(f"data.records={config.records!r}: {config.source} has tokens of text; allowed is 'text'.")
    ranks: list[np.ndarray] = []  # shard by shard: digests take twice the memory
    folder = TokenFolder(config.source, lambda index: ranks.append(held_out_ranks(index["text"], config.seed)))
    folder.check_tokenizer(tokenizer)
    return folder, held_out_documents(np.concatenate(ranks), config.held_out)


def _check(config: DataConfig) -> None:
    if not 0.0 <= config.held_out < 1.0:
        raise ValueError(f"data.held_out={config.held_out} must be at least 0 and less than 1.")
    for name, value in (("seed", config.seed), ("max_bad_records", config.max_bad_records)):
        if value < 0:
            raise ValueError(f"data.{name}={value} must be at least 0.")


def _manifest(
    config: DataConfig, corpus: Corpus | TokenFolder, tokenizer: Tokenizer, others: Corpus | None
) -> dict[str, Any]:
    files = {name: [file.documents, file.size, file.digest] for name, file in corpus.files.items()}
    if len(files) > LISTED:
        files = {}
    return {
        "source": config.source,
        "fingerprint": corpus.fingerprint,
        "tokenizer": tokenizer.fingerprint,
        "held_out": config.held_out,
        "seed": config.seed,
        "packing": VERSION,
        "mixed_in": None if others is None else others.fingerprint,
        "python": platform.python_version() if recall.is_of_python(config.source) else None,
        "bad_records": list(corpus.bad[:LISTED]),
        "files": files,
    }


def check_unchanged(saved: dict[str, Any], now: dict[str, Any], run: str = "this run") -> None:
    """Compares the manifest a run began with to today's; DataError names what changed.

    The place of the data (`source`) may change, its content may not.
    """
    changes = [
        f"{key} was {quoted(saved.get(key))}, is {quoted(now[key])}"
        for key in ("tokenizer", "held_out", "seed", "packing", "mixed_in")
        if saved.get(key) != now[key]
    ]
    if saved.get("fingerprint") != now["fingerprint"]:
        if saved.get("python") != now["python"]:
            changes.append(f"the corpus is that of Python {shown(saved.get('python'))}, now of {now['python']}")
        before = saved.get("files")
        named = _changed_files(before, now["files"]) if isinstance(before, dict) and before and now["files"] else []
        # Above LISTED files no manifest names them: the fingerprint alone says that something changed.
        changes += named or [f"the fingerprint was {quoted(saved.get('fingerprint'))}, is {now['fingerprint']!r}"]
    if changes:
        raise DataError(f"The data is not what {run} began with: {'; '.join(changes)}. Restore it, or begin a new run.")


def _changed_files(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    kinds = {
        "gone": [name for name in before if name not in now],
        "new": [name for name in now if name not in before],
        "changed": [name for name in now if name in before and before[name] not in (now[name], list(now[name]))],
    }
    return [
        f"{kind}: {', '.join(map(shown, names[:NAMED]))}"
        + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        for kind, names in kinds.items()
        if names
    ]
