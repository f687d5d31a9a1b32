"""What takes long says how far it is, on stderr, and how long it will take."""

import time
import types

import pytest

from mm01_jax import progress
from mm01_jax.evals import asking, rounds
from mm01_jax.evals.sample import Sample


@pytest.fixture
def always(monkeypatch):
    """As if every moment were five seconds after the one before."""
    times = iter(range(0, 10**6, 10))
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: next(times)))


def test_a_watch_says_how_far_it_is_and_what_is_left(always, capsys):
    watch = progress.Watch("read", 40, "bytes")
    for done in (0, 10, 20):
        watch.at(done)
    said = ["0 of 40 bytes, unknown time", "10 of 40 bytes, 1:00", "20 of 40 bytes, 0:30"]
    assert capsys.readouterr().err.splitlines() == [f"read: {line} left" for line in said]


def test_what_is_short_says_nothing(capsys):
    watch = progress.Watch("read", 10**9)
    for done in range(1000):
        watch.at(done)
    assert capsys.readouterr().err == ""


def test_what_cannot_say_how_far_it_is_says_what_it_is_at_from_the_fifth_second_on(monkeypatch, capsys):
    assert progress.Progress.SECONDS == 5
    monkeypatch.setattr(progress.Progress, "SECONDS", 0.05)
    with progress.saying("compiling"):
        time.sleep(0.5)
    assert capsys.readouterr().err == "compiling\n"
    with progress.saying("compiling"):
        pass
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_published_samples_and_written_ones_are_told_while_they_are_read_and_made(always, tmp_path, capsys):
    message = (
        '{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}'
    )
    (tmp_path / "x.jsonl").write_text(f'{{"messages": [{message}], "label": "a", "length_class": 8}}\n' * 5)
    rounds.check_data(str(tmp_path))
    assert capsys.readouterr().err.count(f"--data={tmp_path}: read: ") == 5
    told = {"task": "t", "number": 0, "length": 1, "size": 1, "turns": (), "prefix": "", "answers": ()}
    sample = Sample(**told, scorer="parts", max_tokens=1, chance=0.0, facts={})
    group = types.SimpleNamespace(samples=[sample] * 3, count=3)
    given = types.SimpleNamespace(write=str(tmp_path / "out.jsonl"))
    asked = types.SimpleNamespace(given=given, prompts=lambda tokenizer: None, make=lambda prompts: iter([group]))
    assert asking.write_samples(asked, None) == f"{tmp_path}/out.jsonl: 3 samples"
    assert "samples written: 2 of 3, " in capsys.readouterr().err
