"""Two processes hold one model: each reads its part, and both give the text and the score of one process."""

import json

import pytest

from tests.inference import answering
from tests.parallel.test_processes import start


def answers(output: str) -> answering.Answer:
    (line,) = [line for line in output.splitlines() if line.startswith("answer ")]
    return answering.Answer(*json.loads(line.removeprefix("answer ")))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["expert=2,tensor=2", "data=2,sequence=2", "auto"])
def test_two_processes_answer_as_one_does(tmp_path, mesh):
    run = answering.write_run(tmp_path)
    command = ["-m", "tests.inference.answering", run, mesh]
    pair = [answers(output) for output in start(command, processes=2, devices=4)]
    (one,) = (answers(output) for output in start(command, processes=1, devices=4))
    assert pair[0] == pair[1]
    assert pair[0].tokens == one.tokens
    assert pair[0].loss == pytest.approx(one.loss, rel=20 * 2.0**-24)


@pytest.mark.slow
def test_the_first_of_two_processes_prints_and_writes(tmp_path):
    run = answering.write_run(tmp_path)
    common = (f"--checkpoint={run}", "--max-tokens=8", "--temperature=0", "--mesh=expert=2,tensor=2")
    first, second = start(["-m", "mm01_jax.inference", *common, "--prompt=def f"], processes=2, devices=4)
    assert "def f" in first and "def f" not in second
    (tmp_path / "asked.jsonl").write_text('{"prompt": "def f"}\n{"prompt": "x"}\n')
    files = (f"--prompts={tmp_path / 'asked.jsonl'}", f"--out={tmp_path / 'answered.jsonl'}")
    first, second = start(["-m", "mm01_jax.inference", *common, *files], processes=2, devices=4)
    assert "2 answers" in first and "answers" not in second
    assert len((tmp_path / "answered.jsonl").read_text().splitlines()) == 2
    first, second = start(["-m", "mm01_jax.evals", "perplexity", *common[:1], *common[3:]], processes=2, devices=4)
    assert "perplexity" in first and "perplexity" not in second
