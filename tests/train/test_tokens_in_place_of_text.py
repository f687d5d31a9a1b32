"""A run goes on with the tokens of its text in the text's place, or back, bit for bit, and with no other tokens."""

import pytest

from tests import small
from tests.data.text_folder import tokenized
from tests.slow import slow_but
from tests.train import cheap_run


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a text, its tokens, and those of another text."""
    cheap_run.use(monkeypatch)
    text = small.write_text(tmp_path / "text")
    tokenized(text, "bytes", tmp_path / "tokens")
    tokenized(small.write_text(tmp_path / "other", seed=1), "bytes", tmp_path / "others")
    return tmp_path


def config(source, steps):
    return small.config(source, train__steps=steps, train__checkpoint_every=4, data__held_out=0.2)


@pytest.mark.parametrize("first", slow_but(("text",), ("text", "tokens")))
def test_a_run_that_changes_between_text_and_tokens_goes_on_bit_for_bit(place, first):
    second = {"text": "tokens", "tokens": "text"}[first]
    _, losses, digest = cheap_run.run(place / "whole", config(place / "text", 8))
    cheap_run.run(place / "parts", config(place / first, 4))
    said, found, again = cheap_run.run(place / "parts", config(place / second, 8))
    assert any("resumed from step 4" in line for line in said)
    assert (found, again) == (losses, digest)


def test_a_run_does_not_go_on_with_the_tokens_of_another_text(place, capsys):
    cheap_run.run(place / "run", config(place / "text", 4))
    assert cheap_run.exit_code(place / "run", config(place / "others", 8)) == 3
    assert f"The data is not what the run in {place / 'run'} began with" in capsys.readouterr().err
