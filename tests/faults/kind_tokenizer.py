"""A tokenizer.json, made hostile, opened and used on a text."""

import json
import pathlib
import random
from collections.abc import Callable
from typing import Any

from tests.faults import hostile
from tests.faults.hostile_bytes import BYTES, INSTEAD
from tests.faults.hostile_json import JSON

WORDS = "a hostile tokenizer is refused in a screen that names the file, whatever its library does"
judge = hostile.judge


def _part(title: str, change: Callable[[dict], Any]) -> hostile.Spoil:
    def spoil(root: pathlib.Path, chance: random.Random) -> str:
        path = root / "tokenizer.json"
        plain = json.loads(path.read_text())
        change(plain)
        path.write_text(json.dumps(plain))
        return "tokenizer.json"

    spoil.__name__ = title
    return spoil


def _split(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _use(place: str, part: Any) -> Callable[[dict], Any]:
    return lambda plain: plain.update({place: part})


def _growing(times: int) -> dict:
    return {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * times}


def _in_model(**values: Any) -> Callable[[dict], Any]:
    return lambda plain: plain["model"].update(values)


def _nested(depth: int) -> dict:
    part = {"type": "NFC"}
    for _ in range(depth):
        part = {"type": "Sequence", "normalizers": [part]}
    return part


def _disguised(plain: dict) -> None:
    """Handled by `write` below: the key is spelt with an escape."""
    plain["pre_tokenizer"] = _split("(x+x+)+y")


def _spelt(root: pathlib.Path, chance: random.Random) -> str:
    thing = _part("", _disguised)(root, chance)
    path = root / "tokenizer.json"
    path.write_text(path.read_text().replace('"Regex"', '"Re\\u0067ex"'))
    return thing


_spelt.__name__ = "a pattern whose key is spelt with an escape"
TEN = [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}] * 12
PARTS = {
    "a pattern that backtracks": _use("pre_tokenizer", _split("(a+a+)+b")),
    "alternatives that backtrack": _use("pre_tokenizer", _split("(a|a)*$b")),
    "a cubic pattern": _use("pre_tokenizer", _split(r"\s*\s*\s*\s*\s*x")),
    "a pattern with large counts": _use("pre_tokenizer", _split("((a{1,1000}){1,1000}){1,1000}")),
    "a pattern that is none": _use("pre_tokenizer", _split("(((")),
    "a pattern of 1,000,000 brackets": _use("pre_tokenizer", _split("(" * 1_000_000 + ")" * 1_000_000)),
    "a normalizer that grows a text": _use("normalizer", _growing(1_000_000)),
    "normalizers that grow one another": _use("normalizer", {"type": "Sequence", "normalizers": TEN}),
    "a normalizer that empties a text": _use(
        "normalizer", {"type": "Replace", "pattern": {"Regex": ".*"}, "content": ""}
    ),
    "a decoder that grows a text": _use("decoder", _growing(1_000_000)),
    "a prefix of 10 MB": _use("normalizer", {"type": "Prepend", "prepend": "a" * 10_000_000}),
    "a character map of noise": _use("normalizer", {"type": "Precompiled", "precompiled_charsmap": "QUJDRA=="}),
    "an empty character map": _use("normalizer", {"type": "Precompiled", "precompiled_charsmap": ""}),
    "normalizers 100 deep": _use("normalizer", _nested(100)),
    "truncation that cannot be": _use(
        "truncation", {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 10}
    ),
    "padding of 10^12": _use(
        "padding",
        {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
        | {"pad_type_id": 0, "pad_token": "x"},
    ),
    "no vocabulary": _in_model(vocab={}, merges=[]),
    "ids of 2^32 - 1": _in_model(vocab={"<|endoftext|>": 2**32 - 1, "a": 2**32 - 2}, merges=[]),
    "ids below 0": _in_model(vocab={"<|endoftext|>": -1}),
    "merges of nothing": _in_model(merges=[["zz", "qq"]] * 10),
    "an unknown token that is not there": _in_model(unk_token="nowhere"),
    "dropout": _in_model(dropout=0.5),
    "dropout of 7": _in_model(dropout=7.0),
    "another model": lambda plain: plain.update(model={"type": "Unigram", "vocab": [], "unk_id": 0}),
    "an unknown id beyond the vocabulary": lambda plain: plain.update(
        model={"type": "Unigram", "vocab": [["<|endoftext|>", 0.0], ["a", float(-1)]], "unk_id": 9}
    ),
    "words alone": lambda plain: plain.update(
        model={"type": "WordLevel", "vocab": {"<|endoftext|>": 0}, "unk_token": "nowhere"}
    ),
    "pieces without end": lambda plain: plain.update(
        model={"type": "WordPiece", "vocab": {"<|endoftext|>": 0}, "unk_token": "nowhere"}
        | {"continuing_subword_prefix": "", "max_input_chars_per_word": 10**9}
    ),
    "100,000 special tokens": lambda plain: plain.update(
        added_tokens=[
            dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            | {"id": 300 + i, "content": f"<|{i}|>", "special": True}
            for i in range(100_000)
        ]
    ),
    "60,000 added tokens of 100 bytes": lambda plain: plain.update(
        added_tokens=[plain["added_tokens"][0] | {"id": 300 + i, "content": f"{i:0100}"} for i in range(60_000)]
    ),
    "words of 1,000 characters": lambda plain: plain.update(
        model={"type": "WordPiece", "vocab": {"<|endoftext|>": 0, "a": 1}, "unk_token": "<|endoftext|>"}
        | {"continuing_subword_prefix": "#" * 1000, "max_input_chars_per_word": 1000}
    ),
    "merges with a long suffix": _in_model(end_of_word_suffix="x" * 1000),
    "merges with a long prefix": _in_model(continuing_subword_prefix="x" * 1000),
    "an end token that moves the cursor": lambda plain: plain.update(
        added_tokens=[*plain["added_tokens"], plain["added_tokens"][0] | {"id": 299, "content": "\x1b[2J"}]
    ),
}
_ALL = tuple(_part(title, change) for title, change in PARTS.items())
MEMBERS = hostile.members("tokenizer", hostile.ways(_ALL, (_spelt,), INSTEAD, JSON, BYTES))
