"""Data at training scale on this machine's processors: making tokens, reading them, and the first batch of many.

    python -m benchmarks.data --tokenizer=tokenizer.json [--megabytes=64] [--workers=2] [--json=FILE]

Throughput of `mm01-tokenize`, from typing it to its manifest, stands beside the tokenizers library's own batch encoding
(`encode_batch_fast`, which looks for no offsets) of the same texts with as many threads, each in a process of its own;
both read the texts from the same file. Tokens are read as rows of 8,192 by one process. The first batch is that of 10^6
documents of 10^3 ids, 2 GB on the disk; its time and memory are those of a new process, imports included.
"""

import json
import os
import pathlib
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator

import numpy as np

from benchmarks import results
from tests.command_line import Parser, whole

ROW, ROWS_READ = 8192, 3000
MANY, LONG, IN_A_SHARD = 1_000_000, 1_000, 20_000  # documents, ids of each, documents of a file

_PEER = """
import json, os, sys, time
os.environ["TOKENIZERS_PARALLELISM"], os.environ["RAYON_NUM_THREADS"] = "true", sys.argv[3]
began = time.monotonic()
import tokenizers
words = tokenizers.Tokenizer.from_file(sys.argv[2])
words.encode_special_tokens = True  # their names in a text are text, as they are to us
count, batch = 0, []
def encode(batch):
    return sum(len(one.ids) for one in words.encode_batch_fast(batch, add_special_tokens=False))
for line in open(sys.argv[1], encoding="utf-8"):
    batch.append(json.loads(line)["text"])
    if len(batch) == 1000:
        count, batch = count + encode(batch), []
print(count + (encode(batch) if batch else 0), time.monotonic() - began)
"""
_FIRST = """
import resource, sys, time
began = time.monotonic()
from mm01_jax.config import DataConfig
from mm01_jax.data.dataset import open_dataset
from mm01_jax.data.pipeline import batches
data = open_dataset(DataConfig(source=sys.argv[1], held_out=0.001), 8192, 257, log=lambda line: None)
row, batch = next(batches(data.train, 0, lambda step: 8, vocab_size=257))
seconds = time.monotonic() - began
print(len(data.corpus), int(data.corpus.num_tokens_D.sum(dtype="u8")), seconds,
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.data", __doc__)
    parser.add_argument("--tokenizer", metavar="FILE", help="a tokenizer.json; without it nothing is tokenized")
    parser.add_argument("--megabytes", type=whole(1), default=64, help="of text to tokenize")
    parser.add_argument("--workers", type=whole(1), default=len(os.sched_getaffinity(0)), help="processes, threads")
    parser.add_argument("--documents", type=whole(IN_A_SHARD), default=MANY, help="of the first batch's folder")
    results.add_json(parser)
    arguments = parser.parse_args(argv)
    report = results.Report(arguments.json, "benchmarks.data", argv, packages=("tokenizers", "array-record", "grain"))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(pathlib.Path(folder), report)
        if arguments.tokenizer:
            bench.tokenize(arguments.tokenizer, arguments.megabytes, arguments.workers)
        bench.first_batch(arguments.documents)
    return 0


class Bench:
    """What is measured, in a folder for what it writes."""

    def __init__(self, folder: pathlib.Path, report: results.Report):
        self._folder, self._report = folder, report

    def tokenize(self, tokenizer: str, megabytes: int, workers: int) -> None:
        texts = self._folder / "texts.jsonl"
        size = _write_texts(texts, megabytes * 10**6)
        subject = f"tokenize {size / 1e6:.0f} MB, {workers} processors"
        peer = subprocess.run(
            [sys.executable, "-c", _PEER, str(texts), tokenizer, str(workers)],
            capture_output=True,
            text=True,
            check=True,
        )
        tokens, seconds = peer.stdout.split()
        self._add(f"{subject}: throughput", round(size / float(seconds) / 1e6, 2), "MB/s", peer="tokenizers")
        out = self._folder / "tokens"
        shard_bytes = max(1 << 20, texts.stat().st_size // (4 * workers))
        flags = [f"--source={texts}", f"--tokenizer={tokenizer}", f"--out={out}", f"--workers={workers}"]
        shell = [sys.executable, "-m", "mm01_jax.data.tokenize", *flags, f"--shard-bytes={shard_bytes}"]
        began = time.monotonic()
        subprocess.run(shell, check=True, stdout=subprocess.DEVNULL)
        ours = time.monotonic() - began
        made = json.loads((out / "tokens.json").read_text())
        if made["tokens"] != int(tokens):
            raise RuntimeError(f"{made['tokens']:,} tokens were made, the library makes {int(tokens):,}")
        self._add(f"{subject}: throughput", round(size / ours / 1e6, 2), "MB/s")
        self._add(f"{subject}: of the library's", round(float(seconds) / ours, 3), "x")
        self._read(str(out), tokenizer)

    def _read(self, source: str, tokenizer: str) -> None:
        from mm01_jax.config import DataConfig
        from mm01_jax.data.dataset import open_dataset
        from mm01_jax.data.pipeline import batches

        config = DataConfig(source=source, tokenizer=tokenizer)
        data = open_dataset(config, ROW, 1 << 18, log=lambda line: None)
        made = batches(data.train, 0, lambda step: 8, vocab_size=1 << 18, prefetch=2)
        next(made)
        began, rows = time.monotonic(), 0
        while rows < ROWS_READ:
            rows += len(next(made)[1].tokens)
        self._add(f"rows of {ROW:,} from tokens: read", round(rows * ROW / (time.monotonic() - began)), "tokens/s")

    def first_batch(self, documents: int) -> None:
        source = self._folder / "many"
        _write_many(source, documents)
        count, tokens, seconds, nbytes = _said(_FIRST, source)
        subject = f"{int(count):,} documents, {int(tokens):,} tokens"
        self._add(f"{subject}: first batch", round(float(seconds), 2), "s")
        self._add(f"{subject}: memory till then", round(int(nbytes) / 2**20), "MiB")

    def _add(self, what: str, value: float, unit: str, **more) -> None:
        print(f"{what} {value:,} {unit}" + (f" ({more['peer']})" if more else ""), flush=True)
        self._report.add(what, value, unit=unit, device=results.processor(), **more)


def _said(code: str, *arguments: object) -> list[str]:
    """The words that a program of its own prints."""
    shell = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(shell, capture_output=True, text=True, check=True).stdout.split()


def _write_texts(path: pathlib.Path, size: int) -> int:
    """Lines of real text, of about 4 kB, as long as the standard library reaches again and again; bytes of text."""
    written = 0
    with open(path, "w", encoding="utf-8") as out:
        for number, text in enumerate(_texts()):
            if written >= size:
                break
            text = f"{number}\n{text}"  # no two are equal
            out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            written += len(text.encode())
    return written


def _texts() -> Iterator[str]:
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    while True:
        for path in sorted(root.rglob("*.py")):
            if "site-packages" not in path.parts:
                text = path.read_bytes().decode(errors="ignore").replace("\0", "")
                yield from (text[start : start + 4000] for start in range(0, len(text), 4000))


def _write_many(folder: pathlib.Path, documents: int) -> None:
    """A folder of tokens as mm01-tokenize makes it."""
    import hashlib

    from array_record.python.array_record_module import ArrayRecordWriter

    from mm01_jax.data import token_files
    from mm01_jax.data.corpus import FileSummary, fingerprint
    from mm01_jax.data.tokenizer import BytesTokenizer

    folder.mkdir()
    shards = []
    for shard in range(documents // IN_A_SHARD):
        paths = token_files.paths(folder, shard)
        writer = ArrayRecordWriter(str(paths.tokens), "group_size:1,uncompressed")
        index = np.zeros(IN_A_SHARD, token_files.INDEX)
        for document in range(IN_A_SHARD):
            number = shard * IN_A_SHARD + document
            ids = np.full(LONG, number % 251, "<u2")
            ids[:3] = number & 0xFF, number >> 8 & 0xFF, number >> 16
            record = ids.tobytes()
            writer.write(record)
            index[document] = (LONG, LONG, (number, 7), token_files.ids_digest(record), 0, number)
        writer.close()
        paths.index.write_bytes(index.tobytes())
        digest = hashlib.sha256(index.tobytes()).hexdigest()
        shards.append([IN_A_SHARD, IN_A_SHARD * LONG, paths.tokens.stat().st_size, "0" * 64, digest])
    count = len(shards) * IN_A_SHARD
    words = BytesTokenizer()
    manifest = {"format": token_files.FORMAT, "text_field": "text", "tokenizers": "none", "python": "any"}
    manifest |= {"tokenizer": words.fingerprint, "vocab_size": words.vocab_size, "dtype": "uint16"}
    manifest |= dict.fromkeys(token_files.TOTALS, 0)
    manifest |= {"documents": count, "tokens": count * LONG, "text_bytes": count * LONG, "shards": shards}
    files = {"made": FileSummary(documents=count, size=count * LONG, digest="0" * 64)}
    manifest |= {"end_of_document": words.end_of_document, "fingerprint": fingerprint(files)}
    manifest |= {"num_files": 1, "files": {"made": [count, count * LONG, "0" * 64]}, "bad_records": []}
    (folder / token_files.MANIFEST).write_text(json.dumps(manifest))


if __name__ == "__main__":
    sys.exit(main())
