"""Laws of text as it comes: however ids cut it, the pieces are the whole text up to its first stop."""

import numpy as np
import pytest

from mm01_jax.data.tokenizer import BytesTokenizer
from mm01_jax.inference.stops import Stops, TextStream, stops

END = 256
TEXTS = ("plain", "é中😀 und ü", "a<end>b", "aabaabaac", "\ufffd is a character", "x\n\nUser: y")


class Pieces:
    """A tokenizer of pieces of several bytes, cut anywhere, also inside a character; it drops a leading space, as those
    of the SentencePiece kind do."""

    def __init__(self, data: bytes, cuts):
        self.pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def decode(self, ids):
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", errors="replace").removeprefix(" ")


def said(tokenizer, ids, stop: Stops) -> tuple[list[str], str | None]:
    stream = TextStream(tokenizer, stop)
    pieces = [stream.take([i]) for i in ids]
    return [*pieces, stream.end()], stream.finish


def first_stop(text: str, strings) -> str:
    """What is before the stop string that ends first, the longest of them: character by character."""
    for end in range(len(text) + 1):
        found = [string for string in strings if text[:end].endswith(string)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@pytest.mark.parametrize("strings", [(), ("<end>",), ("aac", "ab"), ("ba", "aba"), ("\n\nUser:", "é中"), ("😀", "d>")])
@pytest.mark.parametrize("text", TEXTS)
def test_every_cutting_of_a_text_gives_the_text_before_its_first_stop_string(text, strings):
    data, random = f" {text}".encode(), np.random.default_rng(len(text))
    want = first_stop(text, strings)
    for count in range(len(data)):
        for _ in range(4):
            cuts = sorted(random.choice(np.arange(1, len(data)), count, replace=False)) if count else []
            tokenizer = Pieces(data, cuts)
            pieces, finish = said(tokenizer, range(len(tokenizer.pieces)), Stops(strings=strings))
            assert "".join(pieces) == want
            assert finish == ("stop" if want != text else None)


def test_a_text_is_said_as_soon_as_it_is_certain():
    pieces, _ = said(BytesTokenizer(), "ab<é".encode(), Stops(strings=("<end>",)))
    assert pieces == ["a", "b", "", "", "<é", ""]


def test_bytes_that_are_no_character_are_shown_as_the_whole_text_shows_them():
    ids = [0xFF, 0x61, 0xC3, 0xC3, 0xA9, 0xE4, 0xB8]
    pieces, _ = said(BytesTokenizer(), ids, Stops())
    assert "".join(pieces) == BytesTokenizer().decode(ids)


def test_a_stop_id_ends_the_text_and_what_was_held_back_is_said():
    stream = TextStream(BytesTokenizer(), Stops(frozenset({END}), ("<end>",)))
    assert stream.take([*b"ab<e", END, *b"nd>"]) == "ab<e"
    assert (stream.finish, stream.count, stream.end()) == ("stop", 4, "")


def test_ids_after_a_stop_string_are_not_counted():
    stream = TextStream(BytesTokenizer(), Stops(strings=("b",)))
    assert (stream.take(list(b"aabaa")), stream.count, stream.finish) == ("aa", 3, "stop")


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (None, Stops()),
        ("END", Stops(strings=("END",))),
        (7, Stops(frozenset({7}))),
        (["a", 7, "b"], Stops(frozenset({7}), ("a", "b"))),
    ],
)
def test_stops_are_a_text_an_id_or_a_list_of_them(given, want):
    assert stops(given) == want


@pytest.mark.parametrize("given", ["", -1, 1.5, True, ["a", None], [["a"]], {"a": 1}, [""]])
def test_what_is_no_stop_is_refused_by_name(given):
    with pytest.raises(ValueError, match="stop: got"):
        stops(given)
