"""A long text is encoded by pieces in bounded memory, and its pieces have the tokens of the whole."""

import functools
import json
import random
import subprocess
import sys

import pytest

from mm01_jax import command
from mm01_jax.config import DataConfig
from mm01_jax.data import tokenizer_guard, tokenizer_pieces
from mm01_jax.data.dataset import open_dataset
from mm01_jax.data.text import DataError
from mm01_jax.data.token_files import MANIFEST
from mm01_jax.data.tokenizer import bytes_json, open_tokenizer
from tests.data import text_folder

tokenizers = pytest.importorskip("tokenizers")
BYTES = bytes_json()["pre_tokenizer"]
WORDS = BYTES | {"use_regex": True}
PREFIXED = WORDS | {"add_prefix_space": True}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
PUNCTUATION = [{"type": "Punctuation", "behavior": b} for b in ("Isolated", "MergedWithPrevious", "Contiguous")]
PUNCTUATION += [{"type": "Punctuation", "behavior": b} for b in ("MergedWithNext", "Removed")]


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


(GPT_2,) = (pattern for pattern in tokenizer_pieces.KNOWN if pattern.startswith("'s"))
STRUCTURES = [
    *([split(pattern), BYTES] for pattern in sorted(tokenizer_pieces.KNOWN)),
    *([split(pattern, "Removed", True), BYTES] for pattern in sorted(tokenizer_pieces.KNOWN)),
    *([part, split(pattern), BYTES] for pattern in sorted(tokenizer_pieces.KNOWN) for part in PUNCTUATION),
    [split(GPT_2), BYTES | {"add_prefix_space": True}],
    [split(GPT_2), METASPACE],
    [WORDS],
    [{"type": "ByteLevel", "trim_offsets": True, "add_prefix_space": False}],
    [PREFIXED],
    [{"type": "Digits", "individual_digits": True}, WORDS],
    [{"type": "Digits", "individual_digits": False}, PREFIXED],
    [{"type": "WhitespaceSplit"}, PREFIXED],
    *([part, last] for part in PUNCTUATION for last in (WORDS, METASPACE)),
    *([METASPACE | {"prepend_scheme": scheme}] for scheme in ("always", "first", "never")),
    [{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}],
    *(
        [{"type": kind}, last]
        for kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer")
        for last in (BYTES, METASPACE)
    ),
    *([{"type": kind}] for kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer")),
]
NORMALIZERS = [None, {"type": "NFC"}, {"type": "NFD"}, {"type": "Lowercase"}]
NORMALIZERS += [{"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}, {"type": "NFC"}]}]
ATOMS = ["a", "b", "x", "ab", "Z", "1", "12", "9", " ", " ", " ", "  ", "\n", "\n", "\r\n", "\t", "\u00a0", "\u3000"]
ATOMS += [
    "\u200b",
    "\u180e",
    "\x1c",
    "\x85",
    "\u2028",
    "'s",
    "'",
    "'LL",
    "'t",
    ".",
    "!",
    "/",
    "-",
    "，",
    "。",
    "中",
    "文",
]
ATOMS += [
    "é",
    "e\u0301",
    "\u0301",
    "\u0316",
    "й",
    "и",
    "が",
    "か",
    "\u3099",
    "각",
    "\u1100",
    "\u1161",
    "Σ",
    "σ",
    "İ",
    "ſ",
]
ATOMS += ["K", "ﬆ", "ก", "\u0e31", "א", "ا", "😀", "\U0001f1e6", "\u200d", "\ufe0f", "<x>", "<s>", "▁", "½", "²", "Ⅷ"]
ADDED = ["<x>", "  ", "\n\n", "ab", "'s", " x", "<s>"]


@functools.cache
def vocabulary() -> tuple[dict, list]:
    """Every byte, every atom's characters, and merges that meet across what should be no place between words."""
    words = dict(bytes_json()["model"]["vocab"])
    pairs = [("a", "b"), ("b", "Ċ"), ("a", "Ċ"), ("x", "1"), ("1", "2"), ("Ġ", "a"), ("Ġ", "x"), ("Ġ", "Ġ"), ("Ċ", "Ċ")]
    pairs += [(".", "Ċ"), ("!", "Ġ"), ("a", "Ġ"), ("1", "Ċ"), ("9", "a"), ("'", "s"), ("▁", "a"), ("▁", "▁")]
    byte = {number: token for token, number in words.items()}
    pairs += [(byte[number], "Ċ") for number in sorted({c.encode()[-1] for c in "\u0301\u0306\u3099，。中"})]
    for character in [*"".join(ATOMS), *(a + b for a, b in pairs)]:
        words.setdefault(character, len(words))
    return words, [list(pair) for pair in pairs]


def made(parts: list[dict], normalizer: dict | None, added: list[str], keeps: bool = True) -> str:
    words, merges = vocabulary()
    model = {"type": "BPE", "vocab": words, "merges": merges}
    if not keeps:
        model = {"type": "BPE", "vocab": {w: i for w, i in words.items() if w not in "Z中-"}, "merges": merges}
    end, last = bytes_json()["added_tokens"][0], max(words.values())
    tokens, known = [], dict(model["vocab"])
    for number, content in enumerate([end["content"], *added]):
        number = known.setdefault(content, last + 1 + number)
        tokens.append(end | {"id": number, "content": content, "special": content in (end["content"], "<s>")})
    model["vocab"] = known
    parts = {"type": "Sequence", "pretokenizers": parts} if len(parts) > 1 else parts[0]
    return json.dumps(
        {"version": "1.0", "added_tokens": tokens, "normalizer": normalizer, "pre_tokenizer": parts} | {"model": model}
    )


@pytest.mark.parametrize("keeps", [True, False])
def test_pieces_of_a_text_have_the_tokens_of_the_whole_whatever_stands_in_it(tmp_path, monkeypatch, keeps):
    chance, path, cuts = random.Random(7), tmp_path / "t.json", 0
    monkeypatch.setattr(tokenizer_pieces, "MOST", 1 << 30)
    for parts in STRUCTURES:
        path.write_text(made(parts, chance.choice(NORMALIZERS), chance.choice([ADDED, []]), keeps))
        words = open_tokenizer(str(path))
        assert words.is_harmless, parts
        texts = ["".join(chance.choices(ATOMS, k=chance.randrange(2, 40))).encode() for _ in range(100)]
        monkeypatch.setattr(tokenizer_pieces, "LONG", 1 << 20)
        whole = [(ids.tolist(), lost) for ids, lost in words.encode_many(texts)]
        monkeypatch.setattr(tokenizer_pieces, "LONG", 1)
        cuts += sum(len(list(tokenizer_pieces.cut(text.decode(), words._place))) - 1 for text in texts)
        for text, one, (ids, lost) in zip(texts, whole, words.encode_many(texts), strict=True):
            assert (ids.tolist(), lost) == one, (parts, text.decode())
    assert cuts > 50 * len(STRUCTURES)


@pytest.mark.parametrize(
    "changed",
    [
        {"pre_tokenizer": BYTES},
        {"pre_tokenizer": None},
        {"pre_tokenizer": split("[a-z]+")},
        {"pre_tokenizer": split(GPT_2, "MergedWithNext")},
        {"pre_tokenizer": METASPACE | {"split": False}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES, {"type": "Whitespace"}]}},
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"added_tokens": [{"content": "a b", "special": True}]},
        {"added_tokens": [{"content": "a", "special": False, "rstrip": True}]},
    ],
)
def test_a_file_whose_texts_cannot_be_cut_is_guarded(changed):
    assert tokenizer_guard.harmless(json.dumps(bytes_json() | {"pre_tokenizer": WORDS}).encode()) is not None
    assert tokenizer_guard.harmless(json.dumps(bytes_json() | {"pre_tokenizer": WORDS} | changed).encode()) is None


def test_a_text_of_15_mb_is_encoded_in_bounded_memory(tmp_path):
    """Whole, one of a single word took 1.9 GB."""
    code = """
import resource, sys
from mm01_jax.data.tokenizer import open_tokenizer
words, text = open_tokenizer(sys.argv[1]), sys.argv[2] * (15_000_000 // len(sys.argv[2]))
words.encode("a small text")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert len(words.encode(text)) > 1_000_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    path = text_folder.write_tokenizer(tmp_path)
    said = subprocess.run([sys.executable, "-c", code, path, "a tale of two cities, "], capture_output=True, check=True)
    assert int(said.stdout) < 200


def test_a_text_that_is_no_words_is_a_bad_record_of_tokens_and_refused_by_name_where_it_is_counted(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(tokenizer_pieces, "LONG", 100)
    monkeypatch.setattr(tokenizer_pieces, "MOST", 1000)
    path = text_folder.write_tokenizer(tmp_path / "words")
    lines = ["a tale " * 400, "a tale " * 20 + "x" * 2000, "aGVs8bG8gd29y" * 400]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    said = r"a\.jsonl (line 2|document 1): behind character 104 of 2,140 come 1,100 bytes and more without an end of a"
    with pytest.raises(DataError, match=said) as error:
        text_folder.tokenized(tmp_path / "a.jsonl", path, tmp_path / "none", shard_bytes=1 << 20)
    assert command.exit_code(error.value) == 3
    text_folder.tokenized(tmp_path / "a.jsonl", path, tmp_path / "tokens", max_bad_records=1)
    manifest = json.loads((tmp_path / "tokens" / MANIFEST).read_text())
    assert (manifest["documents"], manifest["bad"]) == (2, 1)
    with pytest.raises(DataError, match=said):
        open_dataset(DataConfig(source=str(tmp_path / "a.jsonl"), tokenizer=path, held_out=0.0), 16, 300)
    with pytest.raises(ValueError, match="behind character 0 of 2,000 come 1,100 bytes"):
        open_tokenizer(path).encode("x" * 2000)
