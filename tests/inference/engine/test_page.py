"""The examples of docs/engine.md and docs/inference.md run as they stand, one after another, and do what they say."""

import contextlib
import io
import re

import pytest

import mm01_jax
from mm01_jax.data.tokenizer import BytesTokenizer
from mm01_jax.inference import engine_devices
from tests import small
from tests.house.checkout import ROOT
from tests.inference.engine import engines


@pytest.fixture
def printed(monkeypatch):
    """What each example printed; those of several processes are run by their own test."""
    monkeypatch.setattr(engine_devices, "jit", small.unoptimised)
    text = (ROOT / "docs/engine.md").read_text(encoding="utf-8")
    names = {"model": engines.model(), "tokenizer": BytesTokenizer()}
    found = []
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        if "engine_processes" not in block:
            with contextlib.redirect_stdout(io.StringIO(newline="")) as out:
                exec(block, names)  # noqa: S102 - the page's own words
            found.append(out.getvalue())
    return found


@pytest.mark.slow
def test_the_examples_of_the_page_of_inference_run(monkeypatch):
    monkeypatch.setattr(engine_devices, "jit", small.unoptimised)
    monkeypatch.setattr(mm01_jax, "load", lambda _: (engines.model(), BytesTokenizer(), None), raising=False)
    text, names = (ROOT / "docs/inference.md").read_text(encoding="utf-8"), {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)  # noqa: S102 - the page's own words
    assert len(names["texts"]) == 1 and names["texts"][0]
    assert names["logits"].shape == (1, len("def f(x):"), engines.model().config.vocab_size)


def test_the_examples_of_the_page_run_one_after_another(printed):
    text, samples, masked = printed
    streamed, whole = re.split(r"(?:length|stop) [0-9]+ ", text)
    assert streamed + "\n" == whole and streamed
    assert len(samples.splitlines()) == 3
    lines = masked.strip("\n").split("\n")
    assert len(lines) == 3 and all(re.fullmatch("[0-9]{3}", line) for line in lines), masked
