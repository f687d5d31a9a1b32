"""What a checkpoint was made with is compared wherever it is used: tokenizer and data."""

import pytest

from mm01_jax import loading
from mm01_jax.data.text import DataError
from mm01_jax.evals.__main__ import main as evaluate
from tests import small
from tests.train import cheap_run
from tests.train.test_train_nonfinite import change_fact


@pytest.fixture
def made(tmp_path):
    """A run of two steps on a file of its own."""
    workdir = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        cheap_run.use(patch)
        cheap_run.run(workdir, small.config(small.write_text(tmp_path / "text"), train__steps=2))
    return workdir


def test_another_tokenizer_than_that_of_the_training_is_refused_unless_it_is_named(made):
    change_fact(made, 2, "data.tokenizer", "0123abcd")
    with pytest.raises(ValueError, match=r"trained with the tokenizer 0123abcd, and bytes is bytes-257") as caught:
        loading.load(made)
    assert "--tokenizer=bytes" in str(caught.value)
    assert loading.load(made, tokenizer="bytes").tokenizer.name == "bytes"
    change_fact(made, 2, "data.tokenizer", "a\nmm01-eval: all is well")
    with pytest.raises(ValueError, match=r"trained with the tokenizer a\\nmm01-eval: all is well, and"):
        loading.load(made)


def test_perplexity_on_held_out_text_that_has_changed_is_refused_by_the_name_of_the_file(made, capsys):
    text = made.parent / "text" / "text.jsonl"
    text.write_bytes(text.read_bytes() + b'{"text": "one more"}\n')
    assert evaluate(["perplexity", f"--checkpoint={made}", "--nocompile-cache"]) == DataError.exit_code
    assert f"{made}: The data is not what this run began with: changed: text.jsonl" in capsys.readouterr().err
