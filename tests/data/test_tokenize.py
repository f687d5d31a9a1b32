"""mm01-tokenize: the same bytes however the work is shared, kills that lose nothing, damage that is named."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from mm01_jax.data.text import DataError
from mm01_jax.data.token_files import MANIFEST, PLAN
from mm01_jax.data.tokenize import plan, work
from mm01_jax.data.tokenize.__main__ import main
from tests.data.text_folder import SHARD_BYTES, contents, tokenized, write_texts, write_tokenizer
from tests.slow import slow_but


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a source, a tokenizer and the tokens that one process made, shard after shard."""
    folder = tmp_path_factory.mktemp("tokenize")
    write_texts(folder / "source")
    write_tokenizer(folder / "words")
    tokenized(folder / "source", str(folder / "words" / "tokenizer.json"), folder / "tokens")
    return folder


def flags(place, folder, **more):
    given = {"source": place / "source", "tokenizer": place / "words" / "tokenizer.json", "out": folder}
    given |= {"shard_bytes": SHARD_BYTES} | more
    return [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]


def test_a_source_is_cut_into_many_shards_and_a_large_file_of_lines_into_several(place):
    asked = plan.Asked(str(place / "source"), "bytes", str(place / "x"), shard_bytes=SHARD_BYTES)
    made = plan.make(asked)
    assert len(made.shards) > 4
    parts = [(piece.start, piece.stop) for shard in made.shards for piece in shard if piece.shard.name == "c.jsonl"]
    assert len(parts) > 1 and parts[0][0] == 0 and parts[-1][1] == os.path.getsize(place / "source" / "c.jsonl")
    assert all(before[1] == after[0] for before, after in zip(parts, parts[1:], strict=False))


@pytest.mark.parametrize("workers", slow_but((2,), (1, 2, 5)))
def test_any_number_of_workers_gives_the_same_bytes(place, tmp_path, workers):
    assert main(flags(place, tmp_path / "out", workers=workers)) == 0
    assert contents(tmp_path / "out") == contents(place / "tokens")


def test_parts_of_several_machines_in_any_order_give_the_same_bytes(place, tmp_path, capsys):
    for part in (2, 0, 1):
        assert not (tmp_path / "out" / MANIFEST).exists()
        assert main(flags(place, tmp_path / "out", workers=1, shard=f"{part}/3")) == 0
    assert "left to the other parts" in capsys.readouterr().out
    assert contents(tmp_path / "out") == contents(place / "tokens")


def test_lines_of_every_length_are_in_exactly_one_part(tmp_path):
    lines = [json.dumps({"text": "x" * (1 + i * i % 97)}) for i in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    whole = tokenized(tmp_path / "a.jsonl", "bytes", tmp_path / "whole", shard_bytes=1 << 20)
    texts = work.shards.read_summary(whole.out, 0)["documents"]
    for size in (40, 41, 100):
        made = tokenized(tmp_path / "a.jsonl", "bytes", tmp_path / f"by{size}", shard_bytes=size)
        found = [work.shards.read_summary(made.out, n)["documents"] for n in range(len(made.shards))]
        assert sum(found) == texts == 20
        manifests = [json.loads((folder.out / MANIFEST).read_text()) for folder in (whole, made)]
        assert manifests[0]["fingerprint"] == manifests[1]["fingerprint"]


class Command:
    """mm01-tokenize in a process of its own."""

    def __init__(self, arguments):
        root = str(pathlib.Path(__file__).parents[2])
        shell = [sys.executable, "-m", "mm01_jax.data.tokenize", *arguments]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(shell, env=os.environ | {"PYTHONPATH": root}, **pipes)

    def workers(self):
        shown = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout
        return [int(pid) for pid in shown.split()]


def is_there(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes under /proc")
@pytest.mark.parametrize("at", slow_but((0, 4, 9), range(12)))
def test_a_kill_loses_and_repeats_nothing_and_leaves_no_worker(place, tmp_path, at):
    """Killed when `at` shards have their summaries; the same command goes on."""
    out, given = tmp_path / "out", flags(place, tmp_path / "out", workers=1, shard_bytes=600)
    killed = Command(given)
    while len(list(out.glob("tokens-*.json"))) < at + 1 and killed.process.poll() is None:
        time.sleep(0.001)
    workers = killed.workers()
    killed.process.send_signal(signal.SIGKILL)
    killed.process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("tokens-*.json")}
    deadline = time.monotonic() + 30
    while any(map(is_there, workers)):
        assert time.monotonic() < deadline, "a worker outlives the command"
        time.sleep(0.01)
    assert main(given) == 0
    whole = tokenized(place / "source", str(place / "words" / "tokenizer.json"), tmp_path / "whole", shard_bytes=600)
    assert len(whole.shards) > 12 and contents(out) == contents(whole.out)
    assert all((out / name).stat().st_mtime_ns == made for name, made in done.items())
    assert not list(out.glob("*.tmp"))


@pytest.mark.parametrize("what", ["cut", "changed", "missing", "index", "counts", "summary"])
def test_a_damaged_shard_is_named_and_made_again(place, tmp_path, capsys, what):
    out = tmp_path / "out"
    tokenized(place / "source", str(place / "words" / "tokenizer.json"), out)
    suffixes = {"index": "index", "counts": "json", "summary": "json"}
    victim = out / f"tokens-00002.{suffixes.get(what, 'arrayrecord')}"
    content = bytearray(victim.read_bytes())
    content[40] ^= 1
    if what == "missing":
        victim.unlink()
    elif what == "counts":
        plain = json.loads(victim.read_text())
        victim.write_text(json.dumps(plain | {"tokens": plain["tokens"] + 1}))
    else:
        victim.write_bytes(content[:-1] if what in ("cut", "summary") else content)
    assert main(flags(place, out, workers=1)) == 0
    said = capsys.readouterr().out
    assert "made again" in said and victim.name in said
    assert contents(out) == contents(place / "tokens")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"shard_bytes": 2000}, "shard_bytes was 1500, is 2000"),
        ({"text_field": "body"}, "text_field was 'text', is 'body'"),
        ({"tokenizer": "bytes"}, "tokenizer was"),
        ({"source": "stdlib"}, "listing was"),
    ],
)
def test_other_work_in_the_same_folder_is_refused_by_what_differs(place, capsys, change, named):
    before = contents(place / "tokens")
    assert main(flags(place, place / "tokens", **change)) == 3
    assert named in capsys.readouterr().err
    assert contents(place / "tokens") == before


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"shard": "3/3"}, 2, "--shard"),
        ({"shard": "one"}, 2, "--shard"),
        ({"workers": 0}, 2, "--workers"),
        ({"source": "{0}/tokens"}, 2, "lies in a folder of tokens"),
        ({"source": "{0}/nothing/*.txt"}, 2, "neither 'stdlib' nor a path"),
        ({"tokenizer": "{0}/no.json"}, 2, "neither 'bytes' nor a tokenizer.json"),
        ({"out": "{0}/source"}, 2, "a new or an empty folder"),
        ({"out": "{0}/source/tokens"}, 2, "allowed: a folder beside it"),
        ({"beam": "--runner=DirectRunner", "shard": "0/2"}, 2, "--shard"),
        ({"beam": "--runner=DirectRunner", "workers": 2}, 2, "--workers"),
    ],
)
def test_what_is_typed_wrong_is_refused_in_one_line(place, capsys, change, code, said):
    change = {name: str(value).format(place) for name, value in change.items()}
    assert main(flags(place, place / "never", **change)) == code
    complained = capsys.readouterr().err
    assert said in complained and complained.count("\n") == 1
    assert not (place / "never").exists() and not (place / "source" / "tokens").exists()


def test_without_its_extra_beam_is_refused_with_what_to_install(place, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    assert main(flags(place, place / "never", beam="--runner=DirectRunner")) == 2
    assert "pip install 'mm01_jax[beam]'" in capsys.readouterr().err


def test_bad_records_are_refused_by_name_or_skipped_and_counted(place, tmp_path, capsys):
    source = write_texts(tmp_path / "source")
    lines = (source / "c.jsonl").read_text().splitlines(keepends=True)
    (source / "c.jsonl").write_text("".join([*lines[:20], '{"text": 7}\n', *lines[20:]]))
    place = tmp_path
    write_tokenizer(place / "words")
    assert main(flags(place, place / "out", workers=1)) == 3
    assert "c.jsonl line" in capsys.readouterr().err
    assert main(flags(place, place / "skips", workers=1, max_bad_records=1)) == 0
    assert "1 bad record skipped, the first: c.jsonl line" in capsys.readouterr().out
    manifest = json.loads((place / "skips" / MANIFEST).read_text())
    assert manifest["bad"] == 1 and manifest["documents"] == 125 and len(manifest["bad_records"]) == 1


def test_a_text_that_changes_while_it_is_tokenized_is_refused(tmp_path):
    source = write_texts(tmp_path / "source")
    made = plan.make(plan.Asked(str(source), "bytes", str(tmp_path / "out"), shard_bytes=SHARD_BYTES))
    plan.keep(made)
    (source / "b1.txt").unlink()
    with pytest.raises(DataError, match="b1.txt"):
        for number in range(len(made.shards)):
            work.settle(made, number)
    assert (tmp_path / "out" / PLAN).exists() and not (tmp_path / "out" / MANIFEST).exists()


def test_shards_that_go_while_others_are_made_are_no_success(place, tmp_path, capsys, monkeypatch):
    real = work.do

    def do(plan, numbers, workers):
        yield from real(plan, numbers, workers)
        (tmp_path / "out" / "tokens-00001.json").unlink()

    with monkeypatch.context() as patch:
        patch.setattr(work, "do", do)
        assert main(flags(place, tmp_path / "out", workers=1)) == DataError.exit_code
    assert "1 shard of this work, the first 1, made and gone: " in capsys.readouterr().err
    assert main(flags(place, tmp_path / "out", workers=1)) == 0
    assert contents(tmp_path / "out") == contents(place / "tokens")
