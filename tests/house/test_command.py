"""Every command ends in one way: the table of exit codes, the words that repeat it, and what each error gives."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from mm01_jax import command, files
from mm01_jax.checkpoint import CheckpointError, Locked, NoValidCheckpoint, SaveFailed
from mm01_jax.config import ConfigError, Problem
from mm01_jax.data.text import DataError
from mm01_jax.flag import text
from mm01_jax.train.loop import NonFinite
from mm01_jax.train.preemption import Preempted
from tests.house.checkout import ROOT
from tests.house.commands import COMMANDS, USES, codes_said
from tests.house.commands import EXIT_CODES as TABLE

ERRORS = {
    ConfigError([Problem(key="a", got=1, allowed="2", nearest=None)]): 2,
    Locked("taken"): 2,
    ValueError("typed"): 2,
    FileNotFoundError("nowhere"): 2,
    DataError("text"): 3,
    CheckpointError("file"): 3,
    NoValidCheckpoint("none"): 3,
    NonFinite("nan"): 4,
    SaveFailed("full"): 74,
    Preempted("saved"): 75,
}


def test_the_help_of_training_repeats_the_table():
    said = codes_said(text(COMMANDS["mm01-train"]))
    assert said == {code: TABLE[code] for code in (0, 2, 3, 4, 74, 75, 130)}


@pytest.mark.parametrize(("name", "task"), USES)
def test_every_help_text_says_codes_of_the_table_in_its_words(name, task):
    said = codes_said(text(COMMANDS[name], task))
    assert {0, 2, 130} <= said.keys()
    for code, words in said.items():
        assert words.startswith(TABLE[code]), f"{code}: {words!r} against {TABLE[code]!r}"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_one_message_and_its_code(error, capsys):
    def fail(argv):
        raise error

    assert command.run(fail, ["x"]) == ERRORS[error]
    assert ERRORS[error] in TABLE
    assert capsys.readouterr() == ("", f"{error}\n")
    assert command.run(fail, ["x"], name="mm01") == ERRORS[error]
    assert capsys.readouterr().err == f"mm01: {error}\n"


def test_a_bug_shows_its_traceback():
    def fail(argv):
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        command.run(fail, [])


def test_what_a_command_returns_is_its_code_and_nothing_is_done(capsys):
    assert command.run(lambda argv: None, []) == 0
    assert command.run(lambda argv: len(argv), ["a", "b", "c"]) == 3
    assert capsys.readouterr() == ("", "")


def test_interrupted_is_said_in_the_command_s_words(capsys):
    def interrupt(argv):
        raise KeyboardInterrupt

    assert command.run(interrupt, []) == 130
    assert command.run(interrupt, [], name="mm01", interrupted="stopped; go on") == 130
    assert capsys.readouterr().err == "interrupted\nmm01: stopped; go on\n"


SHELL = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
sys.path[:0] = [{stand_in!r}]
sys.argv[1:] = {argv}
from mm01_jax.inference.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("then", ["", "raise ImportError('half of a module')"], ids=["raised", "made another error"])
def test_interrupted_while_jax_is_imported_is_interrupted_in_one_line(tmp_path, then):
    stop = "import os, signal, time\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(9)\n"
    (tmp_path / "jax.py").write_text(f"{stop}except KeyboardInterrupt:\n    {then or 'raise'}\n")
    code = SHELL.format(stand_in=str(tmp_path), argv=["--checkpoint=.", "--prompt=y"])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "mm01-generate: interrupted\n")


def test_interrupted_before_there_is_a_word_for_it_a_command_ends_without_a_traceback(tmp_path):
    stop = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"
    (tmp_path / "select.py").write_text(stop)  # what `signals` imports, and nothing before it
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv[0] = '-m'\n"
    code += f"sys.path[:0] = [{str(tmp_path)!r}]; sys.modules.pop('select', None); import mm01_jax"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_help_to_a_full_disk_or_a_reader_that_has_gone_is_no_success():
    code = SHELL.format(stand_in="", argv=["--help"])
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 74 and done.stderr == b"mm01-generate: stdout: No space left on device\n"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


# The process is not the command's: a program, or a notebook, that calls it.
CALLED = """
import hashlib, os, signal, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
from mm01_jax import command, signals
signals.SECONDS = 0.2
def compiles(argv):
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and not signals.may_end_process()
    for seconds in (0.1, 0.3):
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 4_000_000)  # in compiled code, where no handler runs
print(command.run(compiles, []), signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


def test_a_command_that_a_program_calls_ends_without_it():
    done = subprocess.run([sys.executable, "-c", CALLED], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "130 True\n", "interrupted\n")


CHATTER = """
import sys
from mm01_jax import arguments, command
def talk(argv):
    for number in range(100_000):
        print(number)
sys.exit(command.run(talk, sys.argv))
"""


def test_a_closed_pipe_ends_a_command_quietly():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", CHATTER], env=environment, **pipes) as process:
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 141
    assert 141 in TABLE


IMPORTS = """
import gc, sys
from mm01_jax import command
try:
    with command.importing():
        print(gc.isenabled(), gc.get_freeze_count() > 1000)
        import no_such_module
except ImportError:
    print(gc.isenabled(), gc.get_freeze_count() > 1000)
sys.modules["jax"] = None
with command.importing():
    print(gc.isenabled())
"""


def test_nothing_is_looked_for_among_what_a_command_imports_but_where_jax_was_there_before():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False False", "True True", "True"]


def test_what_is_there_and_may_not_be_read_is_bad_data_whoever_reads_it(tmp_path, monkeypatch, capsys):
    def denied(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "asked").write_text("{}")
    monkeypatch.setattr(files.os, "open", denied)
    for read in (files.Door(ValueError).read, files.Door(DataError).read, denied):
        assert command.run(lambda _, read=read: read(tmp_path / "asked"), [], name="mm01-x") == 3
        assert capsys.readouterr().err == f"mm01-x: {tmp_path}/asked: Permission denied\n"
    assert command.run(lambda _: os.stat(tmp_path / "not there"), []) == 2
    assert capsys.readouterr().err == f"{tmp_path}/not there: No such file or directory\n"
