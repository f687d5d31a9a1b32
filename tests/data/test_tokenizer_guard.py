"""A tokenizer.json that somebody has made to harm: what is guarded, what is refused."""

import json
import os
import time

import pytest

from mm01_jax import command
from mm01_jax.data import tokenizer_guard
from mm01_jax.data.tokenizer import bytes_json, open_tokenizer


def says(times: int, ids: int = 1) -> dict:
    """A template that says a text so many times, beside a token of so many ids."""
    text, token = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[X]", "type_id": 0}}
    special = {"[X]": {"id": "[X]", "ids": [5] * ids, "tokens": ["x"] * ids}}
    template = {"type": "TemplateProcessing", "single": [token] + [text] * times, "pair": []}
    return {"post_processor": template | {"special_tokens": special}}


ADDED = {"id": 300, "content": "\u0301", "normalized": True, "special": True}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
PLAIN = bytes_json() | {"pre_tokenizer": BYTE_LEVEL}


def merging(*pairs: list[str]) -> dict:
    model = bytes_json()["model"]
    return model | {"vocab": model["vocab"] | {"ab": 300, "ba": 301}, "merges": list(pairs)}


@pytest.mark.parametrize(
    ("needed", "changed"),
    [
        (False, {}),
        (False, {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}}),
        (False, {"post_processor": BYTE_LEVEL}),
        (False, says(1)),
        (True, {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * 2}}),
        (True, {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}] * 9}}),
        (True, {"normalizer": {"prepend": "xxxx"}}),
        (True, {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}]}}),
        (True, {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}}),
        (True, {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}}}),
        (True, {"pre_tokenizer": {"type": "Split", "pattern": {"String": " "}}}),
        (False, {"added_tokens": [ADDED]}),
        (False, {"added_tokens": [ADDED | {"normalized": False}], "normalizer": {"type": "NFD"}}),
        (True, {"added_tokens": [ADDED], "normalizer": {"type": "NFD"}}),
        (True, {"normalizer": {"type": "NFKD"}}),
        (True, {"decoder": {"type": "Strip", "content": "a", "start": 1, "stop": 0}}),
        (True, {"model": {"type": "WordPiece", "vocab": {}, "max_input_chars_per_word": 100}}),
        (True, {"model": []}),
        (True, {"model": {"type": "WordLevel", "vocab": ["a"], "unk_token": "a"}}),
        (True, {"model": bytes_json()["model"] | {"merges": [" " * 100]}}),
        (False, {"model": merging(["a", "b"], ["b", "a"])}),
        (True, {"model": merging(["a", "b"], ["b", "a"], ["a", "b"])}),
    ],
)
def test_what_is_not_known_to_be_harmless_is_guarded(needed, changed):
    assert (tokenizer_guard.harmless(json.dumps(PLAIN | changed).encode()) is None) is needed


@pytest.mark.parametrize("form", [list, " ".join])
def test_merges_are_searched_for_in_no_vocabulary_but_an_object(form):
    words = [f"w{number}" for number in range(20_000)]
    model = bytes_json()["model"] | {"vocab": form(words), "merges": [[words[-1], ""]] * len(words)}
    start = time.process_time()
    assert tokenizer_guard.harmless(json.dumps(bytes_json() | {"model": model}).encode()) is None
    assert time.process_time() - start < 1


def test_names_are_counted_whatever_stands_between_them_and_their_colon():
    content = b'{"model": {"vocab": {' + b",".join(b'"%d"\n\t:1' % number for number in range(300_001)) + b"}}}"
    assert tokenizer_guard._names(content) == 300_003


def test_a_type_that_is_spelt_with_escapes_is_guarded():
    content = json.dumps(bytes_json() | {"normalizer": {"type": "Prepend", "prepend": "x"}}).encode()
    assert tokenizer_guard.harmless(content.replace(b"Prepend", b"Pr\\u0065pend")) is None


@pytest.mark.parametrize("changed", [PLAIN, bytes_json()])
def test_what_stands_around_a_text_is_no_part_of_it_and_a_text_said_again_is_refused(tmp_path, changed):
    pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    for template in (says(1, ids=100), {"post_processor": {"type": "Sequence", "processors": [*says(1).values()]}}):
        path.write_text(json.dumps(changed | template))
        assert open_tokenizer(str(path)).encode("ab").tolist() == [97, 98]
    for times in (0, 2, 2000):
        path.write_text(json.dumps(changed | says(times)))
        with pytest.raises(
            ValueError, match=rf"its post_processor says a text {times:,} times; allowed: once"
        ) as error:
            open_tokenizer(str(path))
        assert command.exit_code(error.value) == 3


def test_a_tokenizer_that_makes_a_thousand_tokens_of_a_character_is_refused(tmp_path):
    pytest.importorskip("tokenizers")
    grows = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    (tmp_path / "tokenizer.json").write_text(json.dumps(bytes_json() | {"normalizer": grows}))
    words = open_tokenizer(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="makes 1,002 tokens of a text of 3 bytes; allowed: at most 248$"):
        words.encode("cab")
    with pytest.raises(ValueError, match="makes 1,002 tokens of a text of 3 bytes"):
        words.encode_many([b"cab"])


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("name", ["model", "type", "merges"])
def test_a_file_that_says_a_name_twice_is_bad_data_by_that_name(tmp_path, name, guarded):
    pytest.importorskip("tokenizers")
    plain = bytes_json()
    if guarded:
        plain["normalizer"] = {"type": "Prepend", "prepend": "x"}
    (tmp_path / "t.json").write_text(json.dumps(plain).replace(f'"{name}"', f'"{name}": null, "{name}"', 1))
    with pytest.raises(ValueError, match=rf"t\.json'.*the name '{name}' occurs twice") as error:
        open_tokenizer(str(tmp_path / "t.json"))
    assert command.exit_code(error.value) == 3


def test_a_vocabulary_of_very_many_pieces_takes_bounded_memory(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    plain = bytes_json()
    pieces = [["<unk>", 0.0], *([f"w{number}", -1.5] for number in range(50_000))]
    plain["model"] = {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False}
    plain["added_tokens"][0]["id"] = len(pieces)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(plain))
    assert open_tokenizer(str(path)).vocab_size == len(pieces) + 1
    monkeypatch.setattr(tokenizer_guard, "MOST_MEMORY", 16 << 20)
    with pytest.raises(ValueError, match=r"tokenizer\.json': while it is loaded: MemoryError"):
        open_tokenizer(str(path))
    monkeypatch.setattr(tokenizer_guard, "MOST_MEMORY", 28 << 20)
    with pytest.raises(ValueError, match=r"ended the library \(SIGABRT: damaged, or more than 28 MiB asked for"):
        open_tokenizer(str(path))


def test_a_tokenizer_that_is_there_and_no_regular_file_is_bad_data_by_its_kind(tmp_path):
    os.mkfifo(tmp_path / "tokenizer.json")
    for path, kind in (("/dev/zero", "device"), (tmp_path / "tokenizer.json", "FIFO")):
        with pytest.raises(ValueError, match=f"{path}: .*{kind}") as error:
            open_tokenizer(str(path))
        assert command.exit_code(error.value) == 3


def test_a_folder_is_no_tokenizer_and_the_file_in_it_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"is a directory; allowed: 'bytes' or a tokenizer\.json file\.$"):
        open_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text(json.dumps(bytes_json()))
    with pytest.raises(ValueError, match=rf"is a directory; .* Did you mean '{tmp_path}/tokenizer\.json'\?$"):
        open_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps(bytes_json()).encode("utf-16"), r"t\.json: not UTF-8 \(at byte 0: "),
        (b"[]", "JSON of a list, not of an object$"),
        (b'{"model": []}', "its shape is not that of a tokenizer.json$"),
        (b'{"model": {"vocab": {}}, "added_tokens": [{}]}', "its shape is not that of a tokenizer.json$"),
        (b"[" * 100_000, "its shape is not that of a tokenizer.json$"),
    ],
)
def test_what_is_no_tokenizer_is_said_without_the_words_of_python(tmp_path, content, said):
    pytest.importorskip("tokenizers")
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        open_tokenizer(str(tmp_path / "t.json"))
    assert command.exit_code(error.value) == 3 and "t.json" in str(error.value)


def with_long_names(kind: str, count: int, length: int) -> dict:
    names, plain = [f"{number:0{length}}" for number in range(count)], bytes_json()
    if kind == "added tokens have":
        token = plain["added_tokens"][0] | {"special": False}
        plain["added_tokens"] += [token | {"id": 257 + number, "content": name} for number, name in enumerate(names)]
    elif kind == "vocabulary has":
        plain["model"]["vocab"] |= {name: 256 + number for number, name in enumerate(names)}
        plain["added_tokens"][0]["id"] = 256 + count
    else:
        plain["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [[name, -1.0] for name in names]}
        plain["added_tokens"][0]["id"] = count
    return plain


@pytest.mark.parametrize(
    ("kind", "count", "most"),
    [("added tokens have", 1_000, 1_000_000), ("vocabulary has", 900, 8_000_000), ("pieces", 900, 8_000_000)],
)
def test_tokens_of_very_many_characters_are_refused_before_they_are_loaded(tmp_path, kind, count, most):
    pytest.importorskip("tokenizers")
    path = tmp_path / "t.json"
    path.write_text(json.dumps(with_long_names(kind, 100, 100)))
    assert open_tokenizer(str(path)).vocab_size >= 100
    path.write_text(json.dumps(with_long_names(kind, count, 10_000)))
    what = kind.replace("pieces", "vocabulary has")
    with pytest.raises(ValueError, match=rf"t\.json'.*: its {what} [\d,]+ characters; allowed: at most {most:,}$") as e:
        open_tokenizer(str(path))
    assert command.exit_code(e.value) == 3
