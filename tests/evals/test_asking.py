"""Evaluations of a model: shared states change no answer and cost less, files go on where they were cut off."""

import json
import types

import jax
import pytest

from mm01_jax.data.tokenizer import BytesTokenizer
from mm01_jax.evals import __main__ as evals
from mm01_jax.evals import asking, run, tasks
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
    ("change", "named"),
    [({"score": None}, "score"), ({"score": 2}, "score"), ({"length": "1"}, "length"), ({"tokens": True}, "tokens")],
)
def test_answers_to_go_on_from_that_are_none_are_refused_by_name(tmp_path, change, named):
    whole = {"task": "vt", "length": 9, "tokens": 7, "bytes": 20, "score": 0.5, "chance": 0.0, "text": ""}
    partial = tmp_path / "scores.json.answers.jsonl.partial"
    partial.write_text(json.dumps(whole) + "\n")
    assert asking._known(str(tmp_path / "scores.json"), Begun(1)) == [whole]
    partial.write_text(json.dumps(whole | change) + "\n")
    with pytest.raises(ValueError, match=f"partial: an answer without '{named}'; remove it to begin anew"):
        asking._known(str(tmp_path / "scores.json"), Begun(1))


def test_answers_do_not_go_through_a_link_that_nobody_named(tmp_path, capsys):
    (tmp_path / "another's").write_text("as it was")
    (tmp_path / "n.json.answers.jsonl").symlink_to("another's")
    code, said, err = command(capsys, "copy", f"--checkpoint={tmp_path}", f"--json={tmp_path}/n.json")
    assert (code, said) == (2, "") and err.count("\n") == 1
    assert f"{tmp_path}/n.json.answers.jsonl: is a link" in err
    assert (tmp_path / "another's").read_text() == "as it was"
