"""Wrong configs are refused: at once, before jax, with key, value, what is allowed and the nearest valid choice."""

import os
import subprocess
import sys
import time

import pytest

from mm01_jax.config import ConfigError, command_line
from tests.config import wrong_configs

ROOT = wrong_configs.ROOT


def test_wrong_base_itself_is_valid():
    assert wrong_configs.base().name == "base"


def test_the_hand_written_cases_are_sixty():
    assert len({wrong.title for wrong in wrong_configs.BY_HAND}) == 60


@pytest.mark.parametrize("wrong", wrong_configs.BY_HAND, ids=lambda wrong: wrong.title)
def test_wrong_config_is_refused_with_key_value_allowed_and_nearest(wrong):
    refusal = wrong_configs.refuse(wrong)
    assert refusal.error is not None, "accepted"
    assert refusal.in_full, str(refusal.error)
    assert refusal.seconds < 2


def test_five_hundred_generated_wrong_configs_are_refused_in_full():
    refusals = [wrong_configs.refuse(wrong) for wrong in wrong_configs.generated()]
    assert len(refusals) == 500
    accepted = [refusal.wrong.title for refusal in refusals if refusal.error is None]
    assert not accepted
    vague = [f"{refusal.wrong.title}: {refusal.error}" for refusal in refusals if not refusal.in_full]
    assert not vague
    assert max(refusal.seconds for refusal in refusals) < 2


def test_message_stays_on_one_screen_when_everything_is_wrong():
    wrong = wrong_configs.typed(" ".join(f"train.nonsense_{n}={'9' * 5000}" for n in range(200)))
    lines = str(wrong_configs.refuse(wrong).error).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) < 600


def test_train_main_refuses_a_typo_within_two_seconds_with_exit_code_2_and_no_traceback():
    wrong = wrong_configs.typed("train.stpes=3", "train.steps")
    code, message, seconds = wrong_configs.command_line(wrong)
    assert (code, "Traceback" in message) == (2, False)
    assert "train.stpes: got '3'" in message and "nearest: train.steps" in message
    assert seconds <= 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--cofig=configs/tiny.py"], "nearest: --config"),
        (["--config=configs/tiny.py", "--confg.train.steps=3"], "nearest: --config.train.steps"),
        (["--config=configs/tinny.py"], "nearest: configs/tiny.py"),
        (["--config=tinny"], "nearest: tiny"),
        (["--config=tiny", "--config.mesh.rules.expert=expert,tensor"], "nearest: ('expert', 'tensor')"),
        (["configs/tiny.py"], "nearest: --config=configs/tiny.py"),
        (["--config=tiny"], "nearest: --workdir=runs/tiny"),
        ([], "nearest: --config=tiny"),
        (["--config=configs/tiny.py", "--dry_run=perhaps"], "--dry-run: got 'perhaps'; allowed: true or false"),
    ],
)
def test_train_main_refuses_a_wrong_command_line_with_exit_code_2(arguments, expected):
    command = [sys.executable, "train_main.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert expected in done.stderr and "Traceback" not in done.stderr


def test_refusing_a_config_imports_neither_jax_nor_flax():
    code = (
        "import sys; from tests.config import wrong_configs as w; [w.refuse(x) for x in w.BY_HAND]; "
        "print([name for name in ('jax', 'flax', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_import_of_the_command_line_costs_less_than_three_tenths_of_a_second_over_absl():
    def seconds(module: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], cwd=ROOT, check=True)
        return time.perf_counter() - start

    assert (
        min(seconds("mm01_jax.config.command_line") for _ in range(3)) - min(seconds("absl.flags") for _ in range(3))
        < 0.3
    )


@pytest.mark.slow
def test_every_hand_written_command_line_is_refused_within_two_seconds_with_exit_code_2():
    typed = [wrong for wrong in wrong_configs.BY_HAND if wrong.overrides]
    for wrong in typed:
        code, message, seconds = wrong_configs.command_line(wrong)
        assert code == 2 and "Traceback" not in message, wrong.title
        assert wrong.key in message and seconds <= 2, wrong.title


def test_a_folder_a_fifo_and_a_number_beyond_all_are_told_from_what_does_not_exist(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "pipe.json")
    for name, overrides, said in (
        ("run", [], rf"nearest: {tmp_path}/run/config\.json$"),
        ("pipe.json", [], "; it is no regular file$"),
        ("pipe.jsn", [], rf"that exists; nearest: {tmp_path}/pipe\.json$"),
        ("tiny", ["model.embed_dim=1e300"], "got '1e300'; allowed: a whole number; nearest: 1$"),
    ):
        with pytest.raises(ConfigError, match=said):
            command_line.load_config(name if overrides else str(tmp_path / name), overrides)
