"""The training command in processes of its own, with the real step: signals, kills, and that resuming is bitwise."""

import concurrent.futures
import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import jax
import pytest

from mm01_jax.train.preemption import Preemption
from tests.faults.train_faults import Runs, kill_and_resume

STEPS = 48


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run named `stopped`, to which SIGTERM was sent at its third step, and its exit code."""
    runs = Runs(tmp_path_factory.mktemp("runs") / "runs", STEPS, 2, cache=jax.config.jax_compilation_cache_dir)
    process = runs.start("stopped")
    wait_for_step(runs, "stopped", 3)
    process.send_signal(signal.SIGTERM)
    return runs, process.wait(timeout=120)


def wait_for_step(runs: Runs, name: str, step: int) -> None:
    deadline = time.monotonic() + 300
    while max(runs.losses(name), default=0) < step:
        assert time.monotonic() < deadline, runs.said(name)
        time.sleep(0.005)


def test_at_most_forty_lines_come_before_the_first_step(runs):
    lines = runs[0].said("stopped").splitlines()
    assert 1 <= next(n for n, line in enumerate(lines) if line.startswith("step 1/")) <= 40
    assert not [line for line in lines if "Warning" in line or "Error" in line]


def test_sigterm_saves_the_step_in_hand_and_exits_with_75(runs):
    runs, code = runs
    assert code == 75, runs.said("stopped")
    (saved,) = step_said_to_be_saved(runs)
    assert max(runs.losses("stopped")) == int(saved) < STEPS


def step_said_to_be_saved(runs: Runs) -> list[str]:
    return re.findall(r"step (\d+) is saved; the same command goes on", runs.said("stopped"))


@pytest.mark.slow  # with a step that costs nothing by default: test_train_loop
def test_resuming_after_sigterm_is_bitwise(runs):
    runs, _ = runs
    (saved,) = step_said_to_be_saved(runs)
    runs.finish("whole")
    runs.finish("stopped")
    assert not [line for line in runs.said("whole").splitlines() if "Warning" in line or "Error" in line]
    assert f"resumed from step {saved} (verified" in runs.said("stopped")
    assert runs.losses("stopped") == runs.losses("whole")
    assert runs.digest("stopped") == runs.digest("whole")


@pytest.mark.slow
def test_two_kills_leave_losses_and_the_last_digest_as_they_were(tmp_path):
    # A compile cache of its own here and below: a process that is killed may leave half a file in it.
    rows, equal = kill_and_resume(Runs(tmp_path / "runs", STEPS, 2), kills=2, seed=1)
    assert rows
    assert equal, [row.row() for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2])
def test_twelve_kills_leave_losses_and_the_last_digest_as_they_were(tmp_path, every):
    runs = Runs(tmp_path / "runs", 120, every)
    rows, equal = kill_and_resume(runs, kills=12, seed=every)
    assert len(rows) == 12
    assert any(row.in_save for row in rows)
    assert equal, [row.row() for row in rows]


# Waits in compiled code, which no Python exception interrupts.
STUCK = """
import jax
from mm01_jax import signals
from mm01_jax.train.preemption import Preemption
stuck = jax.jit(lambda: jax.lax.while_loop(lambda x: x >= 0, lambda x: jax.lax.rem(x + 1, 1000), 0))
with signals.Ends("", "interrupted"), Preemption():  # a command's process
    print("ready", flush=True)
    stuck().block_until_ready()
"""


def test_a_second_sigint_ends_the_process_at_once_even_inside_compiled_code():
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen([sys.executable, "-c", STUCK], env=environment, stdout=subprocess.PIPE, text=True)
    with process, contextlib.ExitStack() as afterwards:
        afterwards.callback(process.kill)  # else the suite would wait for it for ever
        assert process.stdout.readline() == "ready\n"
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1.0)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10.0) == 128 + signal.SIGINT


def test_outside_the_main_thread_a_run_listens_to_no_signal():
    def asked() -> bool:
        with Preemption() as preemption:
            return preemption.requested(1)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(asked).result() is False
