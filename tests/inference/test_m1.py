"""MiniMax-M1 as it is published, tiny: its dialect, its template, thoughts apart from the answer, a budget for them."""

import dataclasses
import io
import json
import signal

import pytest

from mm01_jax.data.conversations import BEGIN, END
from mm01_jax.data.m1_template import DOCUMENT
from mm01_jax.inference import __main__ as inference
from mm01_jax.inference import engine_devices, prompt_answers, thoughts
from tests import small
from tests.convert import samples

tokenizers = pytest.importorskip("tokenizers")
LINES = [
    {"messages": [{"role": "user", "content": "2 + 2?"}], "id": 7},
    {"messages": [{"role": "user", "content": "why?"}], "options": {"n": 2, "max_tokens": 12}},
    {"prompt": "def f", "options": {"temperature": 0}},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A PyTorch directory of the dialect, with a tokenizer of bytes that has its special tokens."""
    folder = tmp_path_factory.mktemp("m1") / "in"
    config = dataclasses.replace(samples.CONFIG, vocab_size=320)
    samples.write(folder, samples.settings("m1", config), samples.tensors("m1", config), 1)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = tokenizers.Tokenizer(tokenizers.models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    words.add_special_tokens(["<end_of_document>", BEGIN, END, DOCUMENT])
    words.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(engine_devices, "jit", small.unoptimised)


def answered(checkpoint, folder, capsys, *flags) -> tuple[int, list[dict], str]:
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    files = f"--prompts={folder / 'in.jsonl'}", f"--out={folder / 'out.jsonl'}"
    code = inference.main(
        [f"--checkpoint={checkpoint}", *files, "--dtype=float32", "--max-tokens=30", "--batch=2", *flags]
    )
    out = folder / "out.jsonl"
    return (
        code,
        [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else [],
        capsys.readouterr()[1],
    )


class Opening(thoughts.Budget):
    """Random weights do not think by themselves: what they say first is made to be the mark."""

    def __call__(self, tokens):
        opening = self._tokenizer.encode(thoughts.OPEN)
        return [int(opening[len(tokens)])] if len(tokens) < len(opening) else super().__call__(tokens)


def test_answers_have_their_thoughts_apart_and_end_them_at_their_budget(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mm01_jax.inference.fitting.Budget", Opening)
    code, found, err = answered(checkpoint, tmp_path, capsys, "--thinking-tokens=13")
    assert code == 0, err
    assert [(line.get("id"), line.get("sample")) for line in found] == [(7, None), (None, 0), (None, 1), (None, None)]
    first, *two, plain = found
    assert "thinking" not in plain and plain["text"]
    for line in (first, *two):
        assert not any(mark in line["thinking"] + line["text"] for mark in (thoughts.OPEN, thoughts.CLOSE))
        assert len(line["thinking"].encode()) >= 1
    assert first["text"], "30 tokens are 7 of the mark, 6 of thoughts, 11 of the other mark and 6 of the answer"
    assert [line["text"] for line in two] == ["", ""], "12 tokens are thoughts alone"


def test_a_conversation_has_its_thoughts_aside_and_their_budget(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("mm01_jax.inference.fitting.Budget", Opening)
    monkeypatch.setattr("sys.stdin", io.StringIO("2 + 2?\nwhy?\n"))
    before = signal.getsignal(signal.SIGINT)
    flags = "--chat", "--template=minimax-m1", "--dtype=float32", "--max-tokens=30", "--thinking-tokens=13"
    try:
        code, (out, err) = inference.main([f"--checkpoint={checkpoint}", *flags]), capsys.readouterr()
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 0 and out.strip()
    assert err.count("(thinks)\n") == err.count("\n(answers)\n") == 2
    assert not any(mark in out + err for mark in (thoughts.OPEN, thoughts.CLOSE))


def test_what_was_cut_off_goes_on_to_the_same_answers(checkpoint, tmp_path, capsys, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    code, want, _ = answered(checkpoint, whole, capsys)
    assert code == 0

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prompt_answers.Progress, "show", interrupted)
        assert answered(checkpoint, cut, capsys)[:2] == (130, [])
    assert len((cut / "out.jsonl.partial").read_text().splitlines()) == 1
    for flag, other in (("--seed=1", "seed=0, not 1"), ("--quantize=int8", 'quantize=null, not "int8"')):
        code, _, err = answered(checkpoint, cut, capsys, flag)
        assert code == 2 and f"out.jsonl.partial: holds answers of {other}; remove it to begin anew" in err
    jinja = cut / "own.jinja"
    jinja.write_text("{% for message in messages %}{{ message.content }}</think>{% endfor %}")
    code, _, err = answered(checkpoint, cut, capsys, f"--template={jinja}")
    assert code == 2 and "out.jsonl.partial: holds answers of template_text=" in err
    code, found, err = answered(checkpoint, cut, capsys)
    assert (code, found) == (0, want)
    assert "step 2/3" in err and "step 1/3" not in err
    assert " drawn in " in err


def test_a_budget_for_a_model_that_does_not_think_is_refused(checkpoint, tmp_path, capsys):
    code, _, err = answered(checkpoint, tmp_path, capsys, "--thinking-tokens=5", "--template=minimax-01")
    assert code == 2 and err.count("\n") == 1
    assert "--thinking-tokens: got 5; allowed: a flag of conversations whose template knows <think>" in err
