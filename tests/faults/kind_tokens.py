"""Folders of tokens, compressed lines and Parquet, made hostile, opened and read."""

import gzip
import json
import pathlib
import random
import shutil

from tests.faults import hostile
from tests.faults.hostile_bytes import BYTES, INSTEAD
from tests.faults.hostile_json import JSON

WORDS = "hostile tokens, compressed text and Parquet are refused by name, or give what they gave before"
EVERY = 50
judge = hostile.judge


def _manifest(title: str, **values) -> hostile.Spoil:
    def spoil(root: pathlib.Path, chance: random.Random) -> str:
        path = root / "tokens" / "tokens.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return "tokens"

    spoil.__name__ = title
    return spoil


def _copied(one: str, other: str, title: str) -> hostile.Spoil:
    def spoil(root: pathlib.Path, chance: random.Random) -> str:
        shutil.copy(root / "tokens" / one, root / "tokens" / other)
        return "tokens"

    spoil.__name__ = title
    return spoil


def two_tokenizations(root: pathlib.Path, chance: random.Random) -> str:
    """Every shard but the first is another tokenization's."""
    for path in (root / "others").glob("tokens-*"):
        if not path.name.startswith("tokens-00000"):
            shutil.copy(path, root / "tokens" / path.name)
    return "tokens-"


def shards_in_another_order(root: pathlib.Path, chance: random.Random) -> str:
    path = root / "tokens" / "tokens.json"
    plain = json.loads(path.read_text())
    plain["shards"].reverse()
    path.write_text(json.dumps(plain))
    return "tokens"


TOKENS = (
    _manifest("another tokenizer", tokenizer="0" * 64),
    _manifest("a vocabulary of three", vocab_size=3),
    _manifest("documents that are not there", documents=10**9, tokens=10**12),
    _manifest("ids of another width", dtype="uint32"),
    _manifest("another end of a document", end_of_document=97),
    _manifest("no shards", shards=[]),
    _manifest("a shard of 2**62 documents", shards=[[2**62, 1, 1, "0" * 64, "0" * 64]]),
    _manifest("200,000 shards", shards=[[1, 1, 1, "0" * 64, "0" * 64]] * 200_000),
    _copied("tokens-00000.arrayrecord", "tokens-00077.arrayrecord", "a shard twice"),
    _copied("tokens-00001.arrayrecord", "tokens-00000.arrayrecord", "a shard in the place of another"),
    _copied("tokens-00001.index", "tokens-00000.index", "an index in the place of another"),
    two_tokenizations,
    shards_in_another_order,
)


def _text(name: str, content, title: str) -> hostile.Spoil:
    def spoil(root: pathlib.Path, chance: random.Random) -> str:
        path = root / "texts" / name
        path.unlink()
        content(path) if callable(content) else path.write_bytes(content)
        return name

    spoil.__name__ = title
    return spoil


def _zstd(path: pathlib.Path, block: bytes, times: int) -> None:
    import zstandard

    with open(path, "wb") as file, zstandard.ZstdCompressor().stream_writer(file) as out:
        for _ in range(times):
            out.write(block)


def _parquet(columns: dict, **options):
    def write(path: pathlib.Path) -> None:
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)

    return write


_LINE = json.dumps({"text": "ab" * 500}).encode() + b"\n"
TEXTS = (
    _text("b.jsonl.gz", gzip.compress(b" " * 300_000_000, 1), "300 MB of spaces"),
    _text("b.jsonl.gz", gzip.compress(b"\n" * 30_000_000, 1), "30,000,000 blank lines"),
    _text("b.jsonl.gz", gzip.compress(_LINE * 200_000), "200,000 equal lines"),
    _text("b.jsonl.gz", gzip.compress(_LINE)[:-8], "gzip without its checksum"),
    _text("b.jsonl.gz", gzip.compress(_LINE) + b"more", "gzip and something behind it"),
    _text("b.jsonl.gz", gzip.compress(b""), "gzip of nothing"),
    _text("b.jsonl.gz", _LINE, "no gzip"),
    _text("c.jsonl.zst", lambda path: _zstd(path, b" " * (1 << 22), 500), "2 GB of spaces"),
    _text("c.jsonl.zst", lambda path: _zstd(path, _LINE * 1000, 200), "zstd of 200,000 equal lines"),
    _text("c.jsonl.zst", b"\x28\xb5\x2f\xfd" + b"\xff" * 100, "zstd whose window is 2**41 bytes"),
    _text("c.jsonl.zst", b"\x50\x2a\x4d\x18" + b"\xff" * 4, "zstd of one part to be skipped"),
    _text("c.jsonl.zst", b"", "zstd of no bytes"),
    _text("a.parquet", _parquet({"text": [1, 2]}), "a column of numbers"),
    _text("a.parquet", _parquet({"body": ["a"]}), "another column"),
    _text("a.parquet", _parquet({"text": [["a"]]}), "a column of lists"),
    _text("a.parquet", _parquet({"text": [b"a"]}), "a column of bytes"),
    _text("a.parquet", _parquet({"text": ["a", None]}), "a null"),
    _text("a.parquet", _parquet({"text": []}), "a column of no type"),
    _text("a.parquet", _parquet({"text": ["a" * 1_000_000] * 1000}), "1 GB of one text"),
    _text("a.parquet", _parquet({"text": ["a\0"]}), "a NUL"),
    _text("a.parquet", _parquet({"te\x1b[2J": ["a"]}), "a column that moves the cursor"),
    _text("a.parquet", b"PAR1" + b"\xff" * 60 + (50).to_bytes(4, "little") + b"PAR1", "a footer of noise"),
    _text("a.parquet", b"PAR1" + (2**31 - 1).to_bytes(4, "little") + b"PAR1", "a footer of 2 GB"),
)
_OF_TOKENS = hostile.members(
    "tokens", hostile.ways(TOKENS, INSTEAD, BYTES, JSON), refused=tuple(hostile.ways(TOKENS)), count=80
)
_OF_TEXTS = hostile.members("texts", hostile.ways(TEXTS, INSTEAD, BYTES), refused=tuple(hostile.ways(TEXTS)), count=70)
MEMBERS = _OF_TOKENS | {f"{name} in a text": member for name, member in _OF_TEXTS.items()}
