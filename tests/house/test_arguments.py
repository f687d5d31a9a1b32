"""Every command reads its flags in one way: what it refuses and how it says so, what --help shows, what it imports."""

import inspect
import json
import os
import re
import subprocess
import sys

import pytest

from mm01_jax import arguments, command, values
from mm01_jax.config import ConfigError, command_line
from mm01_jax.convert import to_torch
from mm01_jax.convert.torch.dialects import DIALECTS
from mm01_jax.data import __main__ as inspect_data
from mm01_jax.flag import Command, Flag, Task, flags_of, text
from mm01_jax.inference.drill import __main__ as drill
from tests.house.checkout import ROOT
from tests.house.commands import COMMANDS, MAINS, MODULES, USES, page

MADE = Command(
    name="mm01-made",
    doc="mm01-made: nothing.\n\nExit codes: 0 done.",
    flags=(
        Flag("max_tokens", "how many", int, default=4, least=1, most=9),
        Flag("heat", "how hot", float, default=0.5),
        Flag("step", "which", ("train", "decode"), default="train"),
        Flag("dry_run", "do nothing", bool, default=False),
        Flag("source", "where", example="DIR"),
        Flag("json", "numbers", example="FILE", writes=True),
    ),
    takes_overrides=True,
)


def read(*argv: str, program: Command = MADE):
    return vars(arguments.read(program, argv))


def test_flags_are_read_by_their_kind_in_every_spelling():
    typed = {"max_tokens": 7, "heat": 2.0, "step": "decode", "dry_run": True, "source": "a b=c\nd", "json": None}
    spellings = (
        ["--max-tokens=7", "--heat=2", "--step=decode", "--dry-run", "--source=a b=c\nd"],
        ["--max_tokens", "7", "--heat", "2", "--step", "decode", "--dry_run", "--source", "a b=c\nd"],
        ["-max-tokens=7", "--heat=2e0", "-step", "decode", "--dry-run=true", "--source=a b=c\nd"],
    )
    for argv in spellings:
        assert read(*argv) == typed | {"task": None, "overrides": []}
    plain = read("--nodry_run", "--config.train.batch-size=-4", "--config.name=a-b", "--source=--dry-run")
    assert plain["overrides"] == ["train.batch_size=-4", "name=a-b"] and plain["source"] == "--dry-run"
    assert (plain["dry_run"], plain["max_tokens"], plain["heat"]) == (False, 4, 0.5)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--max-tokns=3"], "--max-tokns: got '3'; allowed: a flag of mm01-made (see --help); nearest: --max-tokens"),
        (["--max=3"], "allowed: a flag of mm01-made"),  # nothing is abbreviated
        (["--config.train.stpes=3", "--cofig.train.steps=3"], "nearest: --config.train.steps"),
        (["--max-tokens=0"], "--max-tokens: got '0'; allowed: a whole number >= 1 and <= 9; nearest: --max-tokens=4"),
        (["--max-tokens=1.5"], "--max-tokens: got '1.5'; allowed: a whole number"),
        (["--max-tokens"], "--max-tokens: got 'no value'; allowed: a whole number >= 1"),
        (["--source", "--heat=1"], "--source: got 'no value'; allowed: text; nearest: --source=DIR"),
        (["--source="], "--source: got 'nothing'; allowed"),  # a shell's variable that is not set
        (["--heat=warm"], "--heat: got 'warm'; allowed: a number; nearest: --heat=0.5"),
        (["--heat=nan"], "--heat: got nan; allowed: a finite number; nearest: --heat=0.5"),
        (["--heat=1e999"], "--heat: got inf; allowed: a finite number"),
        (["--json=/dev/null"], "--json: got '/dev/null'; allowed: a file in a folder that exists"),
        (["--json=/"], "--json: got '/'; allowed: a file in a folder that exists, new or to be replaced"),
        (["--json=no/such/x"], "--json: got 'no/such/x'; allowed: a file in a folder that exists"),
        (["--json=" + "x" * 5000], "allowed: a file in a folder that exists"),
        (["--step=tain"], "--step: got 'tain'; allowed: train, decode; nearest: train"),
        (["--dry-run=perhaps"], "--dry-run: got 'perhaps'; allowed: true or false; nearest: --dry-run=false"),
        (["--nodry-run=1"], "--nodry-run: got '1'; allowed: a flag"),
        (["--noheat"], "--noheat: got 'no value'; allowed: a flag"),
        (["--heat=1", "--heat=1"], "--heat: got '1'; allowed: once on a command line; nearest: one --heat"),
        (["--dry-run", "--nodry_run"], "--nodry_run: got 'no value'; allowed: once"),
        (["--config.train.steps=1", "--config.train.steps=2"], "--config.train.steps: got '2'; allowed: once"),
        (["--config.train.batch-size=1", "--config.train.batch_size=1"], "allowed: once"),
        (["tiny"], "command line: got 'tiny'; allowed: flags, written --name=value"),
        (["--dry-run", "true"], "command line: got 'true'"),
        (["--", "--heat=1"], "command line: got '--heat=1'"),
        (["--flagfile=x"], "--flagfile: got 'x'; allowed: a flag"),  # absl's own, which nothing here declares
        (["--hlep"], "--hlep: got 'no value'; allowed: a flag of mm01-made (see --help); nearest: --help"),
        (["---heat=1"], "---heat=1: got 'no flag'; allowed: flags, written --name=value; nearest: --heat"),
        (["--undefok=heet"], "--undefok: got 'heet'; allowed: a flag"),
    ],
)
def test_a_wrong_command_line_is_refused_by_name_in_one_line(argv, said):
    with pytest.raises(ConfigError) as caught:
        read(*argv)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_each_of_several_mistakes_is_named_and_one_cause_is_one_problem():
    program = MADE._replace(flags=(*MADE.flags, Flag("target", "where to", required=True, example="DIR")))
    with pytest.raises(ConfigError) as caught:
        read("--max-tokens=0", "--sorce=x", "--step", "---heat", "--dry-run", "--dry-run", program=program)
    said = [problem.key for problem in caught.value.problems]
    assert said == ["--step", "---heat", "--sorce", "--dry-run", "--max-tokens", "--target"]
    with pytest.raises(ConfigError) as caught:
        read("--config=tiny", "--wrokdir=x", "--config.mesh.tensr=2", program=COMMANDS["mm01-train"])
    assert [problem.key for problem in caught.value.problems] == ["--wrokdir", "mesh.tensr"]
    with pytest.raises(ConfigError) as caught:  # the target is not missing, it is misspelt
        read("--max-tokens=0", "--taget=x", program=program)
    assert [problem.key for problem in caught.value.problems] == ["--taget", "--max-tokens"]


def test_what_is_written_has_its_place_before_any_work(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "full").symlink_to("/dev/full")
    for name in ("fifo", "full", ""):
        with pytest.raises(ConfigError, match="--json: got .*; allowed: a file in a folder that exists, new or to be"):
            read(f"--json={tmp_path / name}")
    assert read(f"--json={tmp_path / 'new'}")["json"] == str(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    written = {"json", "figure", "write", "report", "png", "hlo", "picture"}
    commands = [*COMMANDS.values(), drill.COMMAND, inspect_data.COMMAND]
    every = [flag for one in commands for task in (one.tasks or [None]) for flag in flags_of(one, task)]
    assert written <= {flag.name for flag in every}
    assert all(flag.writes for flag in every if flag.name in written)


def test_a_task_has_flags_of_its_own():
    def task(*flags: Flag) -> Task:
        return Task("something", flags, None)

    program = MADE._replace(tasks={"to-b": task(Flag("only", "one")), "check": task()}, takes_overrides=False)
    assert read("--only=1", "to_b", program=program)["only"] == "1"
    assert read("--heat", "3", "check", program=program)["task"] == "check"
    for argv, said in (
        ([], "task: got 'none'; allowed: one of to-b, check"),
        (["chek"], "task: got 'chek'; allowed: one of to-b, check; nearest: check"),
        (["check", "--only=1"], "--only: got '1'; allowed: a flag of mm01-made check"),
        (["check", "again"], "command line: got 'again'; allowed: one task"),
        (["check", "--config.train.steps=1"], "allowed: a flag of mm01-made check"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            read(*argv, program=program)


@pytest.mark.parametrize(("name", "task"), USES)
def test_every_command_refuses_a_wrong_line_with_exit_code_2_in_one_line(name, task, capsys):
    words = [task] if task else []
    first, *others = flags_of(COMMANDS[name], task or next(iter(COMMANDS[name].tasks), None))
    words += [f"{flag.typed}=." if flag.reads else flag.proposed for flag in others if flag.required]
    for wrong in ([f"{first.typed}x=1"], [f"{first.typed}=a", f"{first.typed}=b"], ["--", "surplus", "surplus"]):
        assert MAINS[name]([*words, *wrong]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"{name}: refused: ") and err.count("\n") == 1


@pytest.mark.parametrize(("name", "task"), USES)
def test_help_says_what_it_does_every_flag_an_example_and_the_exit_codes(name, task, capsys):
    assert MAINS[name]([*([task] if task else []), "--nonsense", "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out == text(COMMANDS[name], task) + "\n"
    lines = out.splitlines()
    assert lines[0].startswith(f"{name} {task}: " if task else f"{name}: ") and max(map(len, lines)) <= 120
    for flag in flags_of(COMMANDS[name], task):
        assert re.search(rf"^  {flag.typed}(=|  )", out, re.MULTILINE), flag.name
    if not task:
        assert re.search(rf"^  {name} ", out, re.MULTILINE), "no example"
        assert all(re.search(rf"^  {word}  +\w", out, re.MULTILINE) for word in COMMANDS[name].tasks)


def test_every_flag_has_one_meaning_in_a_command_and_names_with_underscores():
    for program in COMMANDS.values():
        kinds = {}
        for task in program.tasks or [None]:
            names = [flag.name for flag in flags_of(program, task)]
            assert len(names) == len(set(names)) and all(re.fullmatch(r"[a-z_]+", name) for name in names)
            for flag in flags_of(program, task):
                assert kinds.setdefault(flag.name, flag.kind) == flag.kind


def test_what_mm01_convert_says_before_it_imports_anything_is_what_conversion_knows():
    flags = {flag.name: flag for flag in flags_of(COMMANDS["mm01-convert"], "to-torch")}
    assert flags["dialect"].kind == tuple(DIALECTS)
    assert flags["shard_gb"].default == to_torch.SHARD_BYTES / 1e9


def test_the_page_of_commands_is_what_they_are():
    made = "\n".join(page()) + "\n"
    assert (ROOT / "docs/commands.md").read_text() == made, "python -m tests.house.commands > docs/commands.md"


STARTED = """
import json, sys, time
began = time.perf_counter()
import mm01_jax
seconds, modules = time.perf_counter() - began, len(sys.modules)
import {modules}
heavy = [name for name in ("jax", "flax", "numpy", "orbax", "grain", "jinja2") if name in sys.modules]
from mm01_jax import Config, load_config
heavy += [name for name in ("jax", "flax", "numpy") if name in sys.modules]
print(json.dumps([seconds, modules, heavy]))
"""


def test_importing_the_library_or_a_command_imports_no_jax_and_takes_a_third_of_a_second_at_most():
    code = STARTED.format(modules=", ".join(MODULES.values()))
    shell = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    seconds, modules, heavy = json.loads(subprocess.run(shell, capture_output=True, check=True, timeout=60).stdout)
    assert heavy == []
    assert seconds < 0.3 and modules < 150


def test_a_module_that_is_no_command_is_refused_by_python_m():
    shell = [sys.executable, "-m", "mm01_jax.evals.perplexity", "--checkpoint=runs/tiny"]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "got mm01_jax.evals.perplexity, which is no command" in done.stderr
    assert "nearest: mm01_jax.evals (see --help)" in done.stderr


@pytest.mark.parametrize("module", ["mm01_jax.evals", "mm01_jax.plan", "pytest", "tests.golden.train_curve", ""])
def test_python_m_of_a_command_or_of_another_s_module_is_not(module):
    assert command.refuse_what_is_no_command(["python", "-X", "dev", "-m", module]) is None
    assert command.refuse_what_is_no_command(["python", "train_main.py"]) is None


def test_every_shipped_config_is_named_by_help_and_loads_by_name_and_by_path_from_anywhere(tmp_path, monkeypatch):
    names = {path.stem for path in ROOT.glob("configs/[a-z]*.py")}
    assert set(command_line.shipped()) == names
    said = inspect.cleandoc(text(COMMANDS["mm01-train"]))
    monkeypatch.chdir(tmp_path)
    for name in names:
        assert re.search(rf"\b{name}\b", said)
        assert command_line.load_config(name) == command_line.load_config(f"configs/{name}.py")
        assert command_line.load_config(name) == command_line.load_config(str(ROOT / f"configs/{name}.py"))


def test_a_config_file_takes_what_lies_beside_it_and_shipped_ones(tmp_path):
    def write(name: str, imported: str, base: str) -> str:
        replaced = f"def get_config(): return dataclasses.replace({base}, name={name!r})"
        (tmp_path / f"{name}.py").write_text(f"import dataclasses\n{imported}\n{replaced}\n")
        return str(tmp_path / f"{name}.py")

    write("tiny", "from mm01_jax import load_config", "load_config('tiny')")
    two = write("two", "from . import tiny", "tiny.get_config()")
    three = write("three", "from . import four", "four.get_config()")
    before = set(sys.modules)
    assert command_line.load_config(two).name == "two"
    with pytest.raises(ConfigError, match="cannot import name 'four'"):
        command_line.load_config(three)
    assert set(sys.modules) == before


def test_configs_import_each_other_as_neighbours():
    """An installed package has no top-level package `configs`."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("configs/*.py")}
    assert not [name for name, text in texts.items() if re.search(r"^(from|import) configs", text, re.MULTILINE)]


def test_what_is_no_folder_is_refused_where_one_is_read_before_anything_is_imported(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to("never")
    (tmp_path / "circle").symlink_to("circle")
    for name, said in (
        ("pipe", "a folder, which this is not"),
        ("file", "a folder, which this is not"),
        ("nowhere", "a folder that exists, which a link leads to"),
        ("circle", "a folder that exists, which a link leads to"),
        ("x" * 300, "a folder that exists"),
    ):
        assert values.allowed_instead(str(tmp_path / name), reads="a folder") == said
    for name in ("pipe", "file"):
        assert values.allowed_instead(str(tmp_path / name), reads="a file or folder") is None
    assert values.allowed_instead(str(tmp_path), reads="a folder") is None
