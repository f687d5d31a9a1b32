"""What `mm01_jax/files.py` takes and refuses beyond what the fault kinds throw at it."""

import errno
import json
import os
import resource
import subprocess
import time
import tracemalloc

import pytest

from mm01_jax import files
from mm01_jax.checkpoint.lock import Locked, RunLock
from mm01_jax.checkpoint.writer import claim_partial
from mm01_jax.train.metrics_file import cut


def test_commas_inside_text_are_no_values():
    text = "中,[{" * 2_000_000
    assert files.parse_json(json.dumps({"text": text}, ensure_ascii=False).encode()) == {"text": text}
    with pytest.raises(ValueError, match="values would take [0-9]+ MiB"):
        files.parse_json(b"[" + b"[]," * 3_000_000 + b"[]]")


def test_numbers_are_looked_at_one_by_one_only_where_one_may_be_beyond_float64(monkeypatch):
    many = b"[" + b"1.5,-2e99," * 200_000 + b"0]"
    monkeypatch.setattr(files, "_finite", None)
    assert files.parse_json(many)[:2] == [1.5, -2e99]
    monkeypatch.undo()
    for number in ("1e309", "1" * 310 + ".0", "0.1e0310", "-1E+400", "NaN", "-Infinity"):
        with pytest.raises(ValueError, match=r"is beyond float64|is not JSON|a whole number of"):
            files.parse_json(f"[{number}]".encode())


@pytest.mark.parametrize("value", ["1.5", '"%07d"', '{"%07d":0}'], ids=("floats", "texts", "objects"))
def test_an_object_takes_no_more_memory_than_it_is_counted_with(value):
    names = [f"{number:07}" for number in range(80_000)]
    entries = ",".join(f'"{name}":{value.replace("%07d", name)}' for name in names).encode()
    tracemalloc.start()
    assert len(files.parse_json(b"{" + entries + b"}")) == len(names)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with pytest.raises(ValueError, match="values would take"):
        files.parse_json(b"{" + entries + b"}", most=most)


def test_a_text_with_a_wide_character_is_refused_before_its_characters_are_made():
    raw = '{"text": "\N{GRINNING FACE}'.encode() + b"a" * 20_000_000 + b'"}'
    tracemalloc.start()
    with pytest.raises(ValueError, match="values would take 171 MiB"):
        files.parse_json(raw)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2 * len(raw)


@pytest.mark.parametrize(
    "rest",
    [b'"' + b'\\"' * 200_000, b'"\\\n' * 200_000, b'"",' * 500_000, b'{"a":0},' * 200_000],
    ids=("escaped quotes", "broken escapes", "empty texts", "objects"),
)
def test_json_that_is_too_much_is_refused_in_linear_time_and_bounded_memory(rest):
    raw = b"[" + b"0," * 1_500_000 + rest
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(ValueError, match="values would take .* MiB"):
        files.parse_json(raw)
    seconds, (_, most) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 5 and most < 3 * len(raw) + (1 << 22)


def test_a_folder_inside_a_snapshot_of_hugging_face_has_the_blobs_of_its_repository(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/0").write_text("a text")
    folder = tmp_path / "snapshots/main/data/train"
    folder.mkdir(parents=True)
    (folder / "a.txt").symlink_to(tmp_path / "blobs/0")
    assert files.Door().text(folder / "a.txt", root=folder) == "a text"


@pytest.mark.parametrize(("code", "raised"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_directory_that_cannot_be_made_durable_is_said_but_where_the_file_system_has_it_not(
    tmp_path, monkeypatch, code, raised
):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    if raised:
        with pytest.raises(OSError, match="Input/output"):
            files.sync_directory(tmp_path)
    else:
        files.sync_directory(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES])
def test_an_error_of_the_disk_stays_one(tmp_path, monkeypatch, code):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(files, "update", fail)
        with pytest.raises(Locked if code == errno.EACCES else OSError):
            RunLock(tmp_path)
    monkeypatch.setattr(os, "mkdir", fail)
    with pytest.raises(files.FileError if code == errno.EACCES else OSError):
        files.Door().folder(tmp_path / "new")


def test_a_plan_half_written_is_no_stranger(tmp_path):
    (tmp_path / f"plan.json.{'0' * 32}.tmp").write_text("{")
    assert claim_partial(tmp_path, "plan.json") == tmp_path
    (tmp_path / "other.tmp").write_text("")
    with pytest.raises(ValueError, match=r"holds 'other.tmp'"):
        claim_partial(tmp_path, "plan.json")


def test_a_file_that_a_full_disk_does_not_take_is_named_and_leaves_nothing(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="a.json") as caught:
            files.write(tmp_path / "a.json", bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and not list(tmp_path.iterdir())


def test_a_name_of_megabytes_is_shown_by_its_ends_alone():
    for length in (200, 201, 399, 400, 401, 5000):
        name = "".join(chr(65 + number % 26) for number in range(length))
        assert files.shown(name) == (name if length <= 200 else f"{name[:100]}...{name[-100:]}")
    assert files.shown("\n" * 150) == f"{'\\n' * 50}...{'\\n' * 50}"
    tracemalloc.start()
    huge = "\x1b" * 2**24
    assert len(files.shown(huge)) == 203
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


@pytest.mark.parametrize("name", [RunLock.NAME, "metrics.jsonl"])
def test_what_a_run_writes_in_place_has_no_other_name_under_which_it_would_change(name, tmp_path):
    mine, run = tmp_path / "mine", tmp_path / "run"
    run.mkdir()
    mine.write_text('{"step": 1, "loss": 2}\n{"step": 9, "loss": 2}\n')
    os.link(mine, run / name)
    opens = {RunLock.NAME: RunLock, "metrics.jsonl": lambda workdir: cut(workdir / name, 1, print)}[name]
    with pytest.raises((Locked, OSError), match="has another name, too"):
        opens(run)
    assert mine.read_text() == '{"step": 1, "loss": 2}\n{"step": 9, "loss": 2}\n'


def test_a_folder_in_the_place_of_a_file_is_named_and_not_the_file_that_was_to_replace_it(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError) as caught:
        files.write(tmp_path / "a.json", b"{}")
    assert caught.value.filename == str(tmp_path / "a.json") and [path.name for path in tmp_path.iterdir()] == [
        "a.json"
    ]


def test_folders_too_deep_to_be_deleted_are_left_and_named(tmp_path, monkeypatch):
    deep = tmp_path / "retired"
    deep.mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(deep)
        for _ in range(2000):
            os.mkdir("d")
            os.chdir("d")
    with pytest.raises(OSError, match="too deep") as caught:
        files.remove(deep, tmp_path)
    assert caught.value.filename == str(deep) and deep.exists()
    subprocess.run(["rm", "-r", deep], check=True)
