"""The README's lines of Python do what they say, in a folder where `make train` has been."""

import re

import pytest

import mm01_jax
from tests import small
from tests.house.checkout import ROOT
from tests.train import cheap_run


def lines_of_python() -> list[str]:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return [line for line in block.splitlines() if line]


def test_the_python_of_the_readme_is_four_lines_that_print_text(tmp_path, monkeypatch, capsys):
    with pytest.MonkeyPatch.context() as patch:
        cheap_run.use(patch)
        cheap_run.run(tmp_path / "runs/tiny", small.config(small.write_text(tmp_path / "text"), train__steps=1))
    monkeypatch.chdir(tmp_path)
    lines = lines_of_python()
    assert len(lines) == 4
    capsys.readouterr()
    names: dict = {}
    exec("\n".join(lines), names)  # noqa: S102 - the README's own words
    assert capsys.readouterr().out == f"{names['text']}\n"
    assert names["text"] and isinstance(names["text"], str)


def test_one_string_for_several_prompts_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"prompts: got the text 'def '.*nearest: \['def '\]"):
        mm01_jax.generate(None, None, "def ")
