"""Blanks that a tokenizer loses: no character counted as dropped, so it is said of the tokenizer."""

import json

import pytest

from mm01_jax.config import DataConfig
from mm01_jax.data.dataset import open_dataset
from mm01_jax.data.inspection import inspect
from mm01_jax.data.tokenize.__main__ import main
from mm01_jax.data.tokenizer import BytesTokenizer, bytes_json, open_tokenizer

BYTES = bytes_json()["pre_tokenizer"]
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": ""}
REMOVED = {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}
ADDED = bytes_json()["added_tokens"][0] | {"id": 257, "content": "the", "special": False}


def before(*parts: dict) -> dict:
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [*parts, BYTES]}}


def adding(**changed) -> dict:
    return {"added_tokens": [*bytes_json()["added_tokens"], ADDED | changed]}


def words(kind: str, **changed) -> dict:
    vocabulary = {"</s>": 0, "[UNK]": 1, "a": 2, "b": 3, "c": 4, "▁": 5}
    model = {"type": kind, "vocab": vocabulary, "unk_token": "[UNK]"}
    model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100} if kind == "WordPiece" else {}
    model |= {"merges": []} if kind == "BPE" else {}
    end = bytes_json()["added_tokens"][0] | {"id": 0, "content": "</s>"}
    return {"model": model, "added_tokens": [end], "decoder": None} | changed


BERT = {
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
}
CLEAN = {"type": "Replace", "pattern": {"String": "\n"}, "content": " "}
META = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        (before(REMOVED), r"loses blanks: 'a b\nc' comes back as 'ab\nc'"),
        (before({"type": "WhitespaceSplit"}), r"loses blanks: 'a b\nc' comes back as 'abc'"),
        ({"normalizer": REPLACE}, r"loses blanks: 'a b\nc' comes back as 'ab\nc'"),
        (adding(), ""),
        (adding(lstrip=True), "loses blanks beside 1 added token, the first: 'the'"),
        (adding(rstrip=True), "loses blanks beside 1 added token, the first: 'the'"),
        (adding(rstrip=True, special=True), ""),
        (words("WordPiece", **BERT), ""),
        (words("WordLevel", pre_tokenizer={"type": "Whitespace"}), ""),
        (words("BPE", pre_tokenizer=META, decoder=META, normalizer=CLEAN), ""),
    ],
)
def test_a_tokenizer_that_loses_blanks_is_called_one(tmp_path, changed, said):
    pytest.importorskip("tokenizers")
    path = tmp_path / "t.json"
    path.write_text(json.dumps(bytes_json() | {"normalizer": {"type": "NFC"}} | changed))
    assert open_tokenizer(str(path)).loses_blanks == (f"{str(path)!r} {said}" if said else "")


def test_lost_blanks_are_said_where_tokens_are_made_counted_and_looked_at(tmp_path, capsys):
    pytest.importorskip("tokenizers")
    (tmp_path / "t.json").write_text(json.dumps(bytes_json() | before({"type": "WhitespaceSplit"})))
    (tmp_path / "a.txt").write_text("what is this of a thing")
    text, name, out, said = str(tmp_path / "a.txt"), str(tmp_path / "t.json"), tmp_path / "tokens", []
    assert main([f"--source={text}", f"--tokenizer={name}", f"--out={out}", "--workers=1"]) == 0
    assert capsys.readouterr().out.count("t.json' loses blanks: ") == 1
    open_dataset(DataConfig(source=text, tokenizer=name, held_out=0.0), 2, 257, log=said.append)
    assert sum(line.startswith("data: ") and "loses blanks" in line for line in said) == 1
    inspect(str(out), samples=1, verify=False, log=said.append)
    assert sum(f"{out}/tokenizer.json' loses blanks" in line for line in said) == 1
    assert not BytesTokenizer().loses_blanks
