"""What a command reads is there before any work, what it writes can lie where it is to; what is proposed is allowed."""

import os
import re

import pytest

from mm01_jax import arguments
from mm01_jax.config import ConfigError
from mm01_jax.flag import Command, flags_of
from mm01_jax.values import nearest_path
from tests.house.commands import COMMANDS, USES


def _flags(wanted) -> list:
    """(command, task, flag) of every flag that is `wanted`."""
    return [
        pytest.param(name, task, flag, id=f"{name} {task or ''} {flag.name}")
        for name, task in USES
        if task or not COMMANDS[name].tasks
        for flag in flags_of(COMMANDS[name], task)
        if wanted(flag)
    ]


READS = _flags(lambda flag: flag.reads)


@pytest.mark.parametrize(("name", "task", "flag"), READS)
def test_what_is_to_be_read_and_does_not_exist_is_refused_with_what_does(name, task, flag, tmp_path):
    (tmp_path / "tiny").mkdir()
    program = COMMANDS[name]
    needed = [other for other in flags_of(program, task) if other.required and other.name != flag.name]
    argv = [*([task] if task else []), *(f"{f.typed}={tmp_path if f.reads else f.example}" for f in needed)]
    with pytest.raises(ConfigError, match=rf"nearest: {flag.typed}={re.escape(str(tmp_path))}/tiny$"):
        arguments.read(program, [*argv, f"{flag.typed}={tmp_path}/tinny"])
    with pytest.raises(ConfigError, match=rf"{flag.typed}: got .*; allowed: {flag.reads} that exists$"):
        arguments.read(program, [*argv, f"{flag.typed}={tmp_path}/a/b/c"])


def test_whatever_a_command_reads_is_looked_for_first():
    known = "checkpoint source against ids pixels image_sizes prompts data templates include api_key_file"
    assert {param.values[2].name for param in READS} == set(known.split())
    assert {param.values[0] for param in READS} >= {"mm01-generate", "mm01-eval", "mm01-convert", "mm01-serve"}


@pytest.mark.parametrize(("name", "task", "flag"), _flags(lambda flag: flag.kind in (int, float)))
def test_what_is_proposed_instead_of_a_wrong_number_is_allowed(name, task, flag):
    program = Command(name="mm01-made", doc="", flags=(flag,))
    with pytest.raises(ConfigError) as refused:
        arguments.read(program, [f"{flag.typed}=text"])
    proposed = refused.value.problems[0].nearest
    assert getattr(arguments.read(program, [proposed]), flag.name) is not None


def test_the_nearest_path_mends_its_first_missing_part(tmp_path):
    (tmp_path / "runs" / "tiny" / "checkpoints").mkdir(parents=True)
    (tmp_path / "loop").symlink_to("loop")
    nearest = {"rums/tiny/checkpoints": "runs/tiny/checkpoints", "runs/tinny/x": "runs/tiny", "runs/TINY": "runs/tiny"}
    for typed, meant in nearest.items():
        assert nearest_path(tmp_path / typed) == str(tmp_path / meant)
    for typed in ("q", "runs", "x" * 5000, "a\0b", "loop/x"):
        assert nearest_path(tmp_path / typed) is None


@pytest.mark.parametrize(("name", "task", "flag"), _flags(lambda flag: flag.writes))
def test_a_file_to_be_written_is_looked_at_before_any_work(name, task, flag, tmp_path):
    program = Command(name=name, doc="", flags=(flag._replace(required=False),))
    (tmp_path / "file").write_text("old")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for taken in ("new", "file"):
        arguments.read(program, [f"{flag.typed}={tmp_path / taken}"])
    for place in (tmp_path, tmp_path / "pipe", tmp_path / "link", "/dev/null", tmp_path / "no/x", tmp_path / "file/x"):
        with pytest.raises(ConfigError, match=rf"{flag.typed}: got .*; allowed: a file in a folder that"):
            arguments.read(program, [f"{flag.typed}={place}"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "pipe"]
    assert (tmp_path / "file").read_text() == "old"
