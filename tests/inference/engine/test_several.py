"""Several processes hold one engine: the first is asked, the text is that of one process, and none outlives another."""

import subprocess
import time

import pytest

from mm01_jax.job import Gone
from mm01_jax.train import loop
from tests import small
from tests.inference import answering
from tests.parallel.test_processes import launch, start

MESH, EIGHT = "data=2,expert=2", "data=2,expert=2,tensor=2"


def answers(output: str) -> str:
    (line,) = [line for line in output.splitlines() if line.startswith("answer ")]
    return line


@pytest.mark.slow
def test_a_trained_run_gives_the_same_tokens_on_one_four_and_eight_devices_and_from_two_processes(
    tmp_path, monkeypatch
):
    small.use_one_device(monkeypatch)
    heads = {"model__num_heads": 4, "model__num_kv_heads": 2}
    loop.run(small.config(small.write_text(tmp_path / "text"), train__steps=60, **heads), str(tmp_path / "run"))
    said = []
    for mesh, devices, processes in (("data=1", 1, 1), ("data=2,tensor=2", 4, 1), (EIGHT, 8, 1), (MESH, 4, 2)):
        command = ["-m", "tests.inference.engine.several", tmp_path / "run", mesh]
        said += [answers(output) for output in start(command, processes=processes, devices=devices)]
    assert len(said) == 5 and len(set(said)) == 1


@pytest.mark.slow
def test_two_processes_give_the_tokens_of_one_and_cancel_alike(tmp_path):
    command = ["-m", "tests.inference.engine.several", answering.write_run(tmp_path), MESH]
    pair = [answers(output) for output in start(command, processes=2, devices=4)]
    (one,) = (answers(output) for output in start(command, processes=1, devices=4))
    assert pair == [one, one]


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other_with_its_name_within_a_minute(tmp_path):
    """What the first waits for fails as soon as the second's sockets are closed, and it ends as every command does."""
    command = ["-m", "tests.inference.engine.several", answering.write_run(tmp_path), MESH, 2]
    first, second = launch(command, processes=2, devices=4)
    try:
        assert second.wait(timeout=900) == 9, second.communicate()[0]
        died = time.monotonic()
        said, _ = first.communicate(timeout=120)
        seconds = time.monotonic() - died
        assert "process 1 of this job has died or left" in said, said
        assert first.returncode == Gone.exit_code, said
        assert seconds < 60, said
    except subprocess.TimeoutExpired:
        pytest.fail("a process outlived another")
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()  # closes its pipe
