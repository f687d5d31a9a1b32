"""The generate command: what it prints and how it refuses."""

import io
import json
import os
import signal

import pytest

from mm01_jax import values
from mm01_jax.convert import table
from mm01_jax.convert.sources import open_source
from mm01_jax.inference import __main__ as inference
from mm01_jax.inference import answer_file
from mm01_jax.loading import load
from tests import small
from tests.train import cheap_run


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
    return inference.main(arguments), *capsys.readouterr()


def test_the_command_prints_the_prompt_and_text_and_the_same_seed_prints_it_again(checkpoint, capsys):
    arguments = (f"--checkpoint={checkpoint}", "--prompt=def é", "--max_tokens=20", "--seed=5", "--temperature=1")
    first, again = command(capsys, *arguments), command(capsys, *arguments)
    assert first == again
    code, out, err = first
    assert (code, err) == (0, "")
    assert out.startswith("def é")
    assert len(out) > len("def é\n")
    assert out.endswith("\n")


def test_a_checkpoint_loads_whatever_conversion_knows_of_its_mixers(checkpoint, monkeypatch):
    monkeypatch.setattr(table, "MIXERS", {})
    with small.one_device():
        loaded = load(str(checkpoint))
    assert loaded.model.config == loaded.config.model
    with pytest.raises(ValueError, match="layers of kind 'lightning' have no row in convert/table.py"):
        open_source(checkpoint)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "nearest: --checkpoint=runs/tiny"),
        (
            ("--checkpoint=.",),
            "what to do: got 'nothing'; allowed: one of --prompt=TEXT, --prompts=FILE, --chat",
        ),
        (("--checkpoint=.", "--prompt="), "--prompt: got 'nothing'"),
        (("--checkpoint=.", "--prompt=x", "--chat"), "got '--prompt and --chat'"),
        (("--checkpoint=.", "--prompt=x", "--out=y"), "--out: got 'y'; allowed: a file for the answers"),
        (("--checkpoint=.", f"--prompts={__file__}"), "--out: got 'nothing'"),
        (("--checkpoint=.", "--prompts=nowhere", "--out=y"), "nowhere"),
        (("--checkpoint=.", "--prompts=", "--out=y"), "--prompts: got 'nothing'"),
        (("--checkpoint=.", "--prompt=x", "--top-p=2"), "--top-p: got '2'; allowed: a number >= 0 and <= 1"),
        (
            ("--checkpoint=.", "--prompt=x", "--system=y"),
            "--system: got 'y'; allowed: a flag of a conversation",
        ),
        (("--checkpoint=.", "--prompt=x", "--template=y"), "--template: got 'y'"),
        (("--checkpoint=.", "--chat", "--batch=0"), "--batch: got '0'"),
        (("--checkpoint=.", "--prompt=def", "main"), "command line: got 'main'; allowed: flags"),
        (
            ("--checkpoint=.", "--prompt=x", "--max_tokens=0"),
            "--max-tokens: got '0'; allowed: a whole number >= 1",
        ),
        (("--checkpoint=.", "--prompt=x", "--max_tokens=many"), "nearest: --max-tokens=256"),
        (("--checkpoint=.", "--prompt=a\udcff"), "--prompt: got 'bytes that are no UTF-8 at character 1'"),
        (("--checkpoint=.", "--chat", "--system=\udcff"), "--system: got 'bytes that are no UTF-8 at character 0'"),
        (("--checkpoint=.", "--prompt=x", "--seed=-1"), "seed"),
        (("--checkpoint=.", "--prompt=x", "--top_k=-1"), "--top-k: got '-1'"),
        (("--checkpoint=.", "--prompt=x", "--top_p=0"), "top_p=0"),
        (("--checkpoint=.", "--prompt=x", "--temperature=nan"), "--temperature: got nan"),
        (("--checkpoint=.", "--prompt=x", "--temprature=1"), "nearest: --temperature"),
    ],
)
def test_wrong_flags_are_refused_in_one_line_by_name(capsys, arguments, named):
    code, out, err = command(capsys, *arguments)
    assert (code, out) == (2, "")
    assert named in err
    assert len(err.strip().splitlines()) == 1


def test_a_file_of_prompts_is_answered_in_order_as_a_prompt_alone(checkpoint, tmp_path, capsys):
    """Drawn: the third line, in the second batch, has the seed two above the first's."""
    drawn = (f"--checkpoint={checkpoint}", "--temperature=1", "--max-tokens=20")
    prompts = ["x", "import os\n", "def é"]
    lines = [{"n": n, "prompt": prompt} for n, prompt in enumerate(prompts)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = (f"--prompts={tmp_path / 'in.jsonl'}", f"--out={tmp_path / 'out.jsonl'}")
    code, out, err = command(capsys, *drawn, *files, "--batch=2", "--seed=4")
    assert code == 0, err
    assert out == f"{tmp_path / 'out.jsonl'}: 3 answers\n" and "step 3/3  prompts answered" in err
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    alone = command(capsys, *drawn, f"--prompt={prompts[2]}", "--seed=6")[1]
    assert answers[2]["prompt"] + answers[2]["text"] + "\n" == alone
    assert [answer["n"] for answer in answers] == [0, 1, 2]
    assert {answer["finish"] for answer in answers} <= {"stop", "length"}


def test_a_conversation_needs_a_template_and_with_one_answers_the_lines_of_a_pipe(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/reset\nhello\n"))
    flags = (f"--checkpoint={checkpoint}", "--chat", "--max-tokens=8", "--temperature=0")
    code, out, err = command(capsys, *flags)
    assert (code, out) == (2, "")
    assert err.startswith("mm01-generate: no chat template: ") and err.count("\n") == 1
    before = signal.getsignal(signal.SIGINT)
    code, out, err = command(capsys, *flags, "--template=minimax-01")
    signal.signal(signal.SIGINT, before)
    assert (code, err) == (0, "")
    first, second = out.splitlines()[: len(out.splitlines()) // 2], out.splitlines()[len(out.splitlines()) // 2 :]
    assert first == second and first  # greedy, and the second knows nothing of the first


def test_a_checkpoint_under_a_relative_path_upwards_is_read_from_any_folder(checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    path = os.path.relpath(checkpoint)
    assert path.startswith("..")
    greedy = ("--prompt=d", "--max-tokens=2", "--temperature=0")
    assert command(capsys, f"--checkpoint={path}", *greedy) == command(capsys, f"--checkpoint={checkpoint}", *greedy)


def test_a_missing_or_damaged_checkpoint_is_refused_by_its_place(checkpoint, tmp_path, capsys):
    code, out, err = command(capsys, f"--checkpoint={tmp_path}", "--prompt=x")
    assert (code, out) == (3, "")
    assert err == f"mm01-generate: {tmp_path}: no checkpoint here\n"
    cheap_run.damage(checkpoint, 1, leaf="model.embed")
    code, out, err = command(capsys, f"--checkpoint={checkpoint}", "--prompt=x")
    assert (code, out) == (3, "")
    assert "embed" in err


def test_results_go_only_to_regular_files_and_a_link_stays_a_link(tmp_path):
    asked = tmp_path / "asked.jsonl"
    asked.write_text("{}")
    os.mkfifo(tmp_path / "pipe")
    for place in ("/dev/null", str(tmp_path / "pipe")):
        assert "a file in a folder" in values.allowed_instead(place, writes=True)
    (tmp_path / "real").write_text("before")
    (tmp_path / "link").symlink_to("real")
    answer_file.check_place(str(tmp_path / "link"), str(asked))
    answer_file.finish(str(tmp_path / "link"), answer_file.begin(str(tmp_path / "link"), {}, []), [])
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == ""
