"""A tokenizer.json whose ids are not those that the library uses is refused; what its parts remove is counted."""

import json
import pathlib

import pytest

from mm01_jax import command
from mm01_jax.data import tokenizer_pieces, tokenizer_process
from mm01_jax.data.tokenizer import bytes_json, open_tokenizer

END = bytes_json()["added_tokens"][0]
GUARDED = {"normalizer": {"type": "Replace", "pattern": {"String": "\x00"}, "content": "\x01"}}


def opened(tmp_path: pathlib.Path, plain: dict):
    (tmp_path / "t.json").write_text(json.dumps(plain))
    return open_tokenizer(str(tmp_path / "t.json"))


def with_word(number: int, **token) -> dict:
    """The bytes, a word behind a hole in the ids, and so an end that the library numbers 257."""
    plain = bytes_json()
    plain["model"]["vocab"]["zzq"] = number
    return plain | {"added_tokens": [END | token]}


@pytest.mark.parametrize("changed", [{}, GUARDED])
@pytest.mark.parametrize(
    ("added", "said"),
    [
        ([END | {"id": 300}], r"'<\|endoftext\|>' has the id 300; the tokenizers library uses 256$"),
        ([END, END | {"content": "<x>", "id": 97}], "'<x>' has the id 97; the tokenizers library uses 257$"),
        ([END | {"content": "<x>", "id": 310}, END], "'<x>' has the id 310; the tokenizers library uses 256$"),
        ([END, END | {"content": "<x>"}], "'<x>' has the id 256; the tokenizers library uses 257$"),
        ([END, END | {"content": "<x>", "id": 300, "special": False}], "'<x>' has the id 300"),
        ([END, END | {"content": "a", "id": 98}], "'a' has the id 98; the tokenizers library uses 97$"),
        ([END, END | {"special": False}], r"the added token '<\|endoftext\|>' occurs twice$"),
        ([END, END | {"content": "", "id": 257}], "'' has the id 257; the tokenizers library leaves it out$"),
    ],
)
def test_an_added_token_whose_id_is_not_the_one_that_is_used_is_refused_by_name(tmp_path, added, said, changed):
    pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match=rf"t\.json'.*{said}") as error:
        opened(tmp_path, bytes_json() | changed | {"added_tokens": added})
    assert command.exit_code(error.value) == 3


@pytest.mark.parametrize("changed", [{}, GUARDED])
def test_two_tokens_with_one_id_are_refused_by_name(tmp_path, changed):
    pytest.importorskip("tokenizers")
    plain = bytes_json() | changed
    plain["model"]["vocab"]["c"] = plain["model"]["vocab"]["b"]
    with pytest.raises(ValueError, match=r"t\.json'.*the tokens 'b' and 'c' have one id, 98$"):
        opened(tmp_path, plain)


@pytest.mark.parametrize("changed", [{}, GUARDED])
def test_an_id_beyond_any_embedding_is_refused(tmp_path, changed):
    pytest.importorskip("tokenizers")
    assert opened(tmp_path, with_word(tokenizer_process.MOST_IDS - 1, id=257) | changed).vocab_size == 1 << 24
    with pytest.raises(ValueError, match=r"t\.json'.*a token has the id 16,777,216; allowed: below 16,777,216"):
        opened(tmp_path, with_word(tokenizer_process.MOST_IDS, id=257) | changed)


def test_ids_with_a_hole_are_taken_where_the_file_says_what_the_library_does(tmp_path):
    pytest.importorskip("tokenizers")
    words = opened(tmp_path, with_word(300, id=257))
    assert (words.end_of_document, words.vocab_size) == (257, 301)
    with pytest.raises(ValueError, match="has the id 256; the tokenizers library uses 257"):
        opened(tmp_path, with_word(300))


def test_an_added_token_that_stands_in_the_vocabulary_under_its_id_is_taken(tmp_path):
    pytest.importorskip("tokenizers")
    plain = bytes_json()
    plain["model"]["vocab"] |= {END["content"]: 256, "<s>": 257}
    words = opened(tmp_path, plain | {"added_tokens": [END | {"content": "<s>", "id": 257}, END]})
    assert words.specials == {"<s>": 257, END["content"]: 256} and words.end_of_document == 256


BYTES = bytes_json()["pre_tokenizer"]
REPLACE = {"type": "Replace", "pattern": {"String": "the"}, "content": ""}


def split(**changed) -> dict:
    """A split of the bytes' tokenizer, before its own."""
    part = {"type": "Split", "pattern": {"String": "the"}, "behavior": "Removed", "invert": False} | changed
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [part, BYTES]}}


@pytest.mark.parametrize(
    ("changed", "lost"),
    [
        (split(), 6),
        (split(invert=True), 4),
        (split(type="CharDelimiterSplit", delimiter="t"), 3),
        (split(type="Punctuation"), 1),
        ({"normalizer": REPLACE}, 6),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, REPLACE]}}, 6),
        ({"normalizer": REPLACE | {"pattern": {"Regex": "[a-z]+"}}}, 9),
        ({"normalizer": {"type": "NFC"}}, 0),
        ({"normalizer": REPLACE | {"content": "a"}}, 0),
        (split(behavior="Isolated"), 0),
    ],
)
def test_characters_that_a_part_removes_are_counted(tmp_path, changed, lost):
    pytest.importorskip("tokenizers")
    words = opened(tmp_path, bytes_json() | changed)
    assert words.can_drop == bool(lost)
    assert [gone for _, gone in words.encode_many([b"the tub. the"])] == [lost]


@pytest.mark.parametrize("pattern", sorted(tokenizer_pieces.KNOWN))
def test_a_published_pattern_keeps_every_character_and_nothing_is_counted(tmp_path, pattern):
    """MiniMax-01's own splits so: what its pattern matches is kept, and it matches everything."""
    pytest.importorskip("tokenizers")
    words = opened(tmp_path, bytes_json() | split(pattern={"Regex": pattern}, invert=True))
    text = "".join(map(chr, [*range(0x250), *range(0x300, 0x370), 0x4E00, 0x3000, 0x200B, 0x1F600, 0xE000, 0xAD]))
    assert not words.can_drop and words.decode(words.encode(text)) == text
