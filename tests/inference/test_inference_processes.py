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
