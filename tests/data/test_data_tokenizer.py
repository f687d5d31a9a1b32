"""Tokenizers: bytes, and a user's tokenizer.json."""

import concurrent.futures
import json
import pathlib
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm01_jax import command
from mm01_jax.config import DataConfig
from mm01_jax.data import tokenized, tokenizer_guard
from mm01_jax.data.dataset import open_dataset
from mm01_jax.data.text import DataError
from mm01_jax.data.tokenizer import BytesTokenizer, bytes_json, open_tokenizer

TEXTS = ["a tale of two cities", "the tale of a tub <|endoftext|> tail", "two two two", "cities and tubs"] * 5


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """The path of a byte-level BPE with an end-of-text token, trained on TEXTS; its file asks for truncation."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=6)
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


@given(st.text())
def test_bytes_decode_to_the_text_that_was_encoded(text):
    tokenizer = BytesTokenizer()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and tokenizer.decode(ids) == text
    assert len(ids) == len(text.encode()) and (len(ids) == 0 or ids.max() < 256)


def test_bytes_show_half_a_character_and_skip_ids_without_text():
    assert BytesTokenizer().decode([104, 105, 256, 263, 0xE6]) == "hi\ufffd"


def test_a_tokenizer_file_decodes_to_the_text_and_never_truncates_or_pads(bpe):
    tokenizer = open_tokenizer(bpe)
    for text in [*TEXTS, "ünknown 日本", "x"]:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32 and tokenizer.decode(ids) == text
        assert (tokenizer.encode(text.encode()) == ids).all()
        assert ids.min() >= 0 and ids.max() < tokenizer.vocab_size


def test_half_a_pair_of_surrogates_is_no_text_to_any_tokenizer(bpe):
    for tokenizer in (BytesTokenizer(), open_tokenizer(bpe)):
        with pytest.raises(ValueError, match="a text: character 1 is half a pair of surrogates; allowed: UTF-8"):
            tokenizer.encode("a\ud800")


def test_the_name_of_the_end_of_document_token_inside_a_text_is_text(bpe):
    tokenizer = open_tokenizer(bpe)
    assert tokenizer.end_of_document == 0
    assert 0 not in tokenizer.encode("a <|endoftext|> b")


def test_a_tokenizer_file_packs_to_the_stream_of_its_ids(bpe, tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    config = DataConfig(source=str(tmp_path / "a.jsonl"), tokenizer=bpe, held_out=0.0)
    dataset = open_dataset(config, 16, 300)
    rows, tokenizer = dataset.train, open_tokenizer(bpe)
    made = np.concatenate([rows.row(i)["tokens"] for i in range(-(-rows.tokens_per_epoch // 16))])
    documents = np.split(made, np.flatnonzero(made == 0) + 1)[: len(TEXTS)]
    assert sorted(tokenizer.decode(ids[:-1]) for ids in documents) == sorted(TEXTS)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert dataset.targets_per_byte == (rows.tokens_per_epoch - len(TEXTS)) / num_bytes


def test_token_counts_are_kept_and_a_damaged_file_of_them_is_refused(bpe, tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    config = DataConfig(source=str(tmp_path / "a.jsonl"), tokenizer=bpe, held_out=0.0)
    first = open_dataset(config, 16, 300, cache=tmp_path / "cache").train
    (kept,) = (tmp_path / "cache").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr("mm01_jax.data.tokenized.TokenizedDocuments._count", None)  # counting again would fail
        again = open_dataset(config, 16, 300, cache=tmp_path / "cache").train
    assert (again.row(3)["tokens"] == first.row(3)["tokens"]).all()
    kept.write_bytes(kept.read_bytes()[:-3])
    with pytest.raises(DataError, match="token_counts_.*delete it"):
        open_dataset(config, 16, 300, cache=tmp_path / "cache")
    for many in (2**62, 2**30):
        np.save(kept, np.full_like(first.documents.num_tokens_D, many))
        with pytest.raises(DataError, match=f"token_counts_.* says {many:,} tokens of .*, too many; delete"):
            open_dataset(config, 16, 300, cache=tmp_path / "cache")
    np.save(kept, first.documents.num_tokens_D + 1)
    rows = open_dataset(config, 16, 300, cache=tmp_path / "cache").train
    with pytest.raises(DataError, match="tokens, .* were counted"):
        rows.row(0)


def word_level(path, vocabulary):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return str(path)


def test_ids_beyond_uint16_survive(tmp_path):
    path = word_level(tmp_path / "t.json", {"</s>": 0, "far": 70_000})
    (tmp_path / "a.txt").write_text("far")
    row = open_dataset(DataConfig(source=str(tmp_path / "a.txt"), tokenizer=path, held_out=0.0), 2, 70_001).train.row(0)
    assert row["tokens"].tolist() == [70_000, 0] and row["targets"].tolist() == [0, 70_000]


def test_a_document_that_becomes_no_token_is_refused_by_name(tmp_path):
    path = word_level(tmp_path / "t.json", {"</s>": 0, "far": 1})
    for name, text in (("a.txt", "far"), ("b.txt", "   ")):
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"b.txt document 0: .* makes no token of it"):
        open_dataset(DataConfig(source=str(tmp_path / "*.txt"), tokenizer=path, held_out=0.0), 2, 257)


def test_a_tokenizer_without_an_end_token_is_refused_with_the_known_names(tmp_path):
    with pytest.raises(ValueError, match=r"no token that ends a text; known are <\|endoftext\|>"):
        open_tokenizer(word_level(tmp_path / "t.json", {"far": 0}))


@pytest.mark.parametrize(
    ("name", "said"), [("byte", "Did you mean 'bytes'"), ("/nowhere/tokenizer.json", "neither 'bytes' nor a")]
)
def test_a_tokenizer_that_is_not_there_is_refused(name, said):
    with pytest.raises(ValueError, match=said):
        open_tokenizer(name)


@pytest.mark.parametrize("content", [b"{}", b"not json", b"\xff\xfe"])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    pytest.importorskip("tokenizers")
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(ValueError, match="is not a tokenizer.json|while it is loaded|not UTF-8"):
        open_tokenizer(str(tmp_path / "t.json"))


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(ValueError, match=r"needs the `tokenizers` extra: pip install 'mm01_jax\[tokenizers\]'"):
        open_tokenizer(str(tmp_path / "t.json"))


def test_characters_that_have_no_token_are_counted(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    letters = {"</s>": 0} | {letter: number for number, letter in enumerate("abcdef ", start=1)}
    tokenizers.Tokenizer(tokenizers.models.BPE(letters, [])).save(str(tmp_path / "t.json"))
    (tmp_path / "a.txt").write_text("abé é c")
    (tmp_path / "b.txt").write_text("abc")
    said = []
    config = DataConfig(source=str(tmp_path / "*.txt"), tokenizer=str(tmp_path / "t.json"), held_out=0.0)
    open_dataset(config, 2, 257, log=said.append)
    assert any("2 characters of 1 documents have no token of" in line for line in said), said


@pytest.mark.parametrize("byte", [0xC5, 0x9F, 0xE1, 0xF3, 0x41, None])
def test_characters_are_counted_where_a_byte_level_tokenizer_has_not_every_byte(byte, bpe, tmp_path):
    plain = json.loads(pathlib.Path(bpe).read_text())
    printable = {number: token for token, number in bytes_json()["model"]["vocab"].items()}
    for normalizer in (None, {"type": "NFC"}):
        plain["normalizer"] = normalizer
        if byte is not None:
            plain["model"]["vocab"].pop(printable[byte], None)
            plain["model"]["merges"] = []
        (tmp_path / "t.json").write_text(json.dumps(plain))
        assert open_tokenizer(str(tmp_path / "t.json")).can_drop is (byte is not None)


def test_counting_in_batches_is_counting_one_by_one_and_says_when_tokens_would_pay(tmp_path, bpe, monkeypatch):
    texts = [f"a tale of {i} cities " * (1 + i % 5) for i in range(150)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config, said = DataConfig(source=str(tmp_path / "a.jsonl"), tokenizer=bpe, held_out=0.0), []
    monkeypatch.setattr(tokenized, "PROGRESS_SECONDS", -1.0)
    monkeypatch.setattr(tokenized, "PAYS_SECONDS", -1.0)
    rows = open_dataset(config, 16, 300, log=said.append).train
    words = open_tokenizer(bpe)
    assert rows.documents.num_tokens_D.tolist() == [len(words.encode(text)) for text in texts]
    counted = [line for line in said if "data: counted the tokens of" in line]
    assert len(counted) == 3 and "150 of 150 documents" in counted[-1]
    assert sum("mm01-tokenize makes tokens once" in line for line in said) == 1


def test_a_pattern_that_backtracks_is_stopped_and_named(tmp_path):
    pytest.importorskip("tokenizers")
    path = word_level(tmp_path / "t.json", {"</s>": 0, "far": 1, "<unk>": 2})
    plain = json.loads((tmp_path / "t.json").read_text())
    plain["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(x+x+)+y"},
        "behavior": "Isolated",
        "invert": False,
    }
    plain["model"]["unk_token"] = "<unk>"
    (tmp_path / "t.json").write_text(json.dumps(plain))
    words = open_tokenizer(path)
    assert words.encode("far").tolist() == [1]
    with pytest.raises(ValueError, match=r"t\.json'.*(takes too long|retry-limit)") as error:
        words.encode("x" * 20_000)
    assert command.exit_code(error.value) == 3  # the file's fault
    assert words.encode("far").tolist() == [1]


def test_a_guarded_tokenizer_answers_each_thread_with_its_own_ids(tmp_path):
    pytest.importorskip("tokenizers")
    words = {"</s>": 0} | {f"w{number}": number for number in range(1, 5)}
    path = word_level(tmp_path / "t.json", words)
    guarded = tokenizer_guard.Guarded(path, (tmp_path / "t.json").read_bytes(), ("</s>",))

    def wrong(number: int) -> int:
        return sum(guarded.encode(f"w{number}").tolist() != [number] for _ in range(200))

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert list(threads.map(wrong, range(1, 5))) == [0] * 4
    guarded.close()


def test_a_tokenizer_file_of_more_tokens_than_any_is_refused_before_it_is_loaded(bpe, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_guard, "_MOST_NAMES", 250)
    assert tokenizer_guard.harmless(pathlib.Path(bpe).read_bytes()) is None
    monkeypatch.setattr(tokenizer_guard, "MOST_NAMES", 250)
    with pytest.raises(ValueError, match=r"has about [345]\d\d names, one a token .*; allowed: at most 250$"):
        open_tokenizer(str(bpe))


def test_a_tokenizer_file_of_very_many_values_is_refused_before_it_is_loaded(bpe, tmp_path, monkeypatch):
    """Wherever they stand: a template of thirty million ids took 1.3 GB, and was accepted."""
    piece = {"SpecialToken": {"id": "x", "type_id": 0}}
    special = {"x": {"id": "x", "ids": [1] * 4_000_001, "tokens": ["x"]}}
    template = {"type": "TemplateProcessing", "single": [piece], "pair": [piece], "special_tokens": special}
    plain = json.loads(pathlib.Path(bpe).read_text()) | {"post_processor": template}
    (tmp_path / "tokenizer.json").write_text(json.dumps(plain))
    monkeypatch.setattr(tokenizer_guard.Guarded, "_start", lambda self: pytest.fail("its process was started"))
    with pytest.raises(ValueError, match=r"has about 4,00\d,\d\d\d values; allowed: at most 4,000,000$"):
        open_tokenizer(str(tmp_path / "tokenizer.json"))


def test_a_tokenizer_file_of_very_many_added_tokens_is_refused_before_it_is_loaded(bpe, tmp_path, monkeypatch):
    plain = json.loads(pathlib.Path(bpe).read_text())
    added = plain["added_tokens"][0]
    plain["added_tokens"] = [added | {"id": 300 + i, "content": f"<{i}>"} for i in range(50_001)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(plain))
    monkeypatch.setattr(tokenizer_guard.Guarded, "_start", lambda self: pytest.fail("its process was started"))
    with pytest.raises(
        ValueError,
        match=r"tokenizer.json'?: has about 50,0\d\d objects, as added tokens are; allowed: at most 50,000",
    ):
        open_tokenizer(str(tmp_path / "tokenizer.json"))
