"""Evaluations of a model: shared states change no answer and cost less, files go on where they were cut off."""

import json
import types

import jax
import pytest

from mm01_jax.data.tokenizer import BytesTokenizer
from mm01_jax.evals import __main__ as evals
from mm01_jax.evals import asking, report, run, tasks
from mm01_jax.evals.pieces import Pieces
from mm01_jax.evals.prompts import Prompts
from mm01_jax.inference import engine_devices
from mm01_jax.inference.answer_file import Begun
from tests import small
from tests.inference.engine import engines
from tests.train import cheap_run

GIVEN = {"lengths": "700,900", "depths": 3, "samples": 1, "seed": 5, "template": "base", "bos": None}
SLOTS = 4


@pytest.fixture(scope="module")
def unoptimised():
    """Engines whose programs are compiled quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_devices, "jit", small.unoptimised)
        yield


@pytest.mark.parametrize("task", ["needle", "needles", "copy"])
def test_answers_from_shared_states_are_those_from_cold_and_take_in_less(unoptimised, task):
    prompts = Prompts(Pieces(BytesTokenizer()))
    asked = tasks.read(task, types.SimpleNamespace(**GIVEN))
    groups = list(asked.make(prompts))
    engine = run.engine_for(engines.model(), prompts, groups, SLOTS)
    shared = list(run.answers(engine, prompts, groups))
    taken = engine.statistics()["prefilled_tokens"]
    pages = engine.statistics()["prefix"]["pages"]
    began = [len(prompts.begun(group.begins)) for group in groups]
    assert pages <= sum(length // engine.sizes.grid for length in began)  # questions leave nothing
    alone = run.engine_for(engines.model(), prompts, [group._replace(begins=None) for group in asked.make(prompts)], 1)
    assert alone.memory is None
    cold = list(run.answers(alone, prompts, asked.make(prompts)))
    assert [found.text for found in shared] == [found.text for found in cold]
    assert len({found.text for found in cold}) > len(cold) // 2
    assert sum(found.cached for found in cold) == 0 < sum(found.cached for found in shared)
    asked_tokens = sum(found.tokens for found in cold)
    assert alone.statistics()["prefilled_tokens"] == asked_tokens > taken
    grid = engine.sizes.grid
    saved = asked_tokens - sum(found.cached for found in shared) + sum(began) - taken
    assert saved % grid == 0 and 0 <= saved < began[0]  # a text of another length may begin alike
    for found in shared:
        left = found.sample.facts["distance"] if task == "needle" else 0
        assert found.tokens - found.cached <= left + 2 * grid + 200  # the needle, the question, the answer's beginning


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The work directory of a run of one step."""
    with pytest.MonkeyPatch.context() as patch:
        cheap_run.use(patch)
        workdir = tmp_path_factory.mktemp("run")
        cheap_run.run(workdir, small.config(small.write_text(workdir / "text"), train__steps=1))
    return workdir


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    return evals.main(arguments), *capsys.readouterr()


def test_a_run_that_was_cut_off_goes_on_to_the_same_files(unoptimised, checkpoint, tmp_path, capsys, monkeypatch):
    out, figure = tmp_path / "scores.json", tmp_path / "map.svg"
    typed = ("needles", f"--checkpoint={checkpoint}", "--lengths=700,900", "--depths=3", "--nocompile-cache")
    typed += (f"--json={out}", f"--figure={figure}", "--slots=1")
    code, said, err = command(capsys, *typed)
    assert (code, err) == (0, "") and "chance" in said and "took in" in said
    answers, scores = (tmp_path / "scores.json.answers.jsonl").read_bytes(), json.loads(out.read_text())
    lines = [json.loads(line) for line in answers.splitlines()]
    assert [line["length"] for line in lines] == [700] * 3 + [900] * 3
    assert scores["prompt_tokens"] == sum(line["tokens"] for line in lines) > scores["prefilled_tokens"]
    assert scores["cells"][0]["count"] == 3 and scores["lengths"] == "700,900" and scores["versions"]["jax"]
    assert b"<svg" in figure.read_bytes()
    real, left = run.answers, iter(range(4))

    def cut_off(*given, **told):
        for found in real(*given, **told):
            if next(left, None) is None:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(run, "answers", cut_off)
    assert command(capsys, *typed)[0] == 130
    assert (tmp_path / "scores.json.answers.jsonl.partial").read_bytes() == b"".join(
        line + b"\n" for line in answers.splitlines()[:4]
    )
    monkeypatch.setattr(run, "answers", real)
    code, said, err = command(capsys, *typed[:-1], "--seed=1")  # another run's answers are left alone
    assert code == 2 and "holds answers of seed=42, not 1" in err
    code, said, err = command(capsys, *typed)
    assert (code, err) == (0, "")
    again = json.loads(out.read_text())
    assert (tmp_path / "scores.json.answers.jsonl").read_bytes().count(b"\n") == 6
    assert {name: again[name] for name in ("cells", "depths", "distances")} == {
        name: scores[name] for name in ("cells", "depths", "distances")
    }
    assert again["prefilled_tokens"] < scores["prefilled_tokens"]
    assert not list(tmp_path.glob("*.partial*"))


def test_samples_are_written_for_other_servers_without_weights(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax, "jit", None)
    out = tmp_path / "tasks.jsonl"
    code, said, err = command(
        capsys, "ruler", f"--checkpoint={checkpoint}", f"--write={out}", "--families=vt,fwe", "--nocompile-cache"
    )
    assert (code, err) == (0, "") and said == f"\n{out}: 2 samples\n"
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["task"] for line in lines] == ["vt", "fwe"]
    for line in lines:
        assert [message["role"] for message in line["messages"]] == ["user"] and line["answer_prefix"]
        assert line["bytes"] == len((line["messages"][0]["content"] + line["answer_prefix"]).encode())
        assert line["tokens"] == line["bytes"] + line["max_tokens"] <= line["length"] == 4096


@pytest.mark.parametrize(
    "change",
    [
        {"score": 1.0},
        {"score": None},
        {"length": 701},
        {"tokens": True},
        {"cached": -1},
        {"distance": 3.5},
        {"cell": None},
        {"number": 1},
        {"more": 0},
    ],
)
def test_an_answer_that_says_of_its_sample_what_does_not_follow_is_not_gone_on_from(tmp_path, change):
    prompts, asked = Prompts(Pieces(BytesTokenizer())), tasks.read("needle", types.SimpleNamespace(**GIVEN))
    first = next(iter(next(iter(asked.make(prompts))).samples))
    whole = report.record_of(run.Answered(first, "no", "length", 690, 32)) | {"text": "no", "finish": "length"}
    partial = tmp_path / "scores.json.answers.jsonl.partial"

    def known(*lines: dict) -> list[dict]:
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return asking._known(str(tmp_path / "scores.json"), Begun(len(lines)), asked.make(prompts))

    assert [record["tokens"] for record in known(whole)] == [690]
    with pytest.raises(ValueError, match="partial: line 1: not an answer as it was written; remove the file"):
        known(whole | change)
    with pytest.raises(ValueError, match="partial: line 2: not an answer"):
        known(whole, whole)


def test_two_results_in_one_place_and_results_of_what_is_not_asked_are_refused(checkpoint, tmp_path, capsys):
    typed = ("needle", f"--checkpoint={checkpoint}", "--lengths=700", "--nocompile-cache")
    code, _, err = command(capsys, *typed, f"--json={tmp_path}/a.svg", f"--figure={tmp_path}/./a.svg")
    assert code == 2 and err.count("\n") == 1 and "allowed: another file than --json" in err
    code, _, err = command(capsys, *typed, f"--write={tmp_path}/a.jsonl", f"--json={tmp_path}/a.json")
    assert code == 2 and err.count("\n") == 1 and "--json: nothing is asked where --write" in err
    assert not list(tmp_path.iterdir())
