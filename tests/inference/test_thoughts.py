"""Laws of thoughts: however a text is cut, both sides of it are those of the whole, and nothing said is taken back."""

import itertools

import pytest

from mm01_jax.data.tokenizer import BytesTokenizer
from mm01_jax.inference.thoughts import Budget, Said, split, streamed

TEXTS = {
    "<think>\nab\n</think>\ncd": Said("ab", "cd"),
    "<think>\na\n\nb\n\n</think>\n\nc\nd\n": Said("a\n\nb", "c\nd\n"),
    "\n<think>a</think>b</think>": Said("a", "b</think>"),
    "<think>a <think> </thin": Said("a <think> </thin", ""),
    "<think>\ncut off\n": Said("cut off", ""),
    "<think></think>": Said("", ""),
    " <thinking is hard": Said("", " <thinking is hard"),
    "a <think>b</think>": Said("", "a <think>b</think>"),
    "<thi": Said("", "<thi"),
    "": Said("", ""),
}


@pytest.mark.parametrize("text", TEXTS)
def test_both_sides_of_a_whole_text(text):
    assert split(text) == TEXTS[text]


@pytest.mark.parametrize("text", TEXTS)
def test_every_cutting_in_three_gives_the_sides_of_the_whole(text):
    for a, b in itertools.combinations_with_replacement(range(len(text) + 1), 2):
        said = [*streamed([text[:a], text[a:b], text[b:]])]
        assert Said(*map("".join, zip(*said, strict=True)) if said else ("", "")) == TEXTS[text]
    letters = [*streamed(text)]
    assert all(any(said) for said in letters)
    assert Said(*map("".join, zip(*letters, strict=True)) if letters else ("", "")) == TEXTS[text]


TOKENIZER = BytesTokenizer()


def budget(most: int, text: str):
    return Budget(TOKENIZER, most)([*text.encode()])


def test_a_budget_closes_thoughts_and_asks_for_nothing_else():
    assert budget(20, "<think>abc") == 10
    closed = "<think>abcdef"
    for n, letter in enumerate("\n</think>\n\n"):
        assert budget(13, closed + "\n</think>\n\n"[:n]) == [ord(letter)]
    assert budget(13, closed + "\n</think>\n\nanswer") > 10**6
    assert budget(15, "<think></think>answer") > 10**6
    assert budget(5, "no thoughts at all") > 10**6


class Special(BytesTokenizer):
    specials = BytesTokenizer.specials | {"</think>": 0xF8}

    def special(self, name):
        return self.specials[name]


def test_a_mark_that_is_one_token_is_closed_by_it():
    said = [*b"<think>abc"]
    for want in (ord("\n"), 0xF8, ord("\n"), ord("\n")):
        assert Budget(Special(), 10)(said) == [want]
        said.append(want)


@pytest.mark.parametrize("most", [0, -1, 1.5, "8", None, True])
def test_a_budget_is_a_number_of_tokens(most):
    with pytest.raises(ValueError, match=f"most: got {most!r}; allowed: a whole number at least 1"):
        Budget(TOKENIZER, most)
    with pytest.raises(ValueError, match="tokenizer: got a NoneType, which has no decode; allowed: a Tokenizer"):
        Budget(None, 1)
