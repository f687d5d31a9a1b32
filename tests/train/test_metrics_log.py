"""Laws of metrics.jsonl: whatever happens to it, it is named, and the run goes on."""

import itertools
import json
import resource
import time
import tracemalloc

import pytest

from mm01_jax.train import folder, metrics_file
from mm01_jax.train.metrics import MetricsLog
from mm01_jax.train.metrics_file import read_metrics, spread

DAMAGED = [
    b"not json",
    b'{"step": 2',
    b"[1, 2]",
    b'{"loss": 1.0}',
    b'{"step": "2"}',
    b'{"step": true}',
    b"\xff\xfe",
    b"[" * 9999,
    b'{"step": 3, "x": ' + b"1" * 400 + b"}",
]

LISTS = b'{"step": 1, "x": [' + b"[]," * 10**6 + b"0]}\n"


def write(workdir, *steps: int) -> None:
    (workdir / "metrics.jsonl").write_text("".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in steps))


@pytest.mark.parametrize("line", DAMAGED, ids=lambda line: repr(line[:9]))
def test_a_damaged_line_is_left_out_and_named_and_the_rest_is_kept(tmp_path, line):
    write(tmp_path, 1, 2)
    at = (tmp_path / "metrics.jsonl").stat().st_size
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(line + b'\n{"step": 3}\n{"step": 4}\n{"step"')
    MetricsLog(tmp_path, 3, tensorboard=False).close()
    said = []
    assert [record["step"] for record in read_metrics(tmp_path, said.append)] == [1, 2, 3]
    assert said == [f"{tmp_path / 'metrics.jsonl'}, byte {at}: no object with a step; it is left out"]


def test_many_damaged_lines_are_counted_and_what_follows_holes_is_left_out(tmp_path):
    write(tmp_path, 1)
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b"{bad}\n" * 900 + b'{"step": 2}\n')
        file.truncate(2**40)
    MetricsLog(tmp_path, 3, tensorboard=False).close()
    said = []
    assert [record["step"] for record in read_metrics(tmp_path, said.append)] == [1, 2]
    assert len(said) == 6 and said[5].endswith("895 more such lines")


@pytest.mark.parametrize("resumed", [0, 1, 37, 38, 199, 200, 999])
def test_what_is_after_the_step_resumed_from_is_cut_off_wherever_that_is(tmp_path, resumed):
    steps = [1, *range(2, 201, 2)]  # as with log_every=2
    lines = [json.dumps({"step": step, "loads": [0.5] * (step % 17)}) + "\n" for step in steps]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 202')
    MetricsLog(tmp_path, resumed, tensorboard=False).close()
    kept = [line for line, step in zip(lines, steps, strict=True) if step <= resumed]
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(kept)


def test_a_log_of_600_000_lines_is_opened_at_once_and_drawn_in_bounded_time_and_memory(tmp_path):
    loads = ", ".join(["0.9999999999999999"] * 8)
    line = f'{{"step": %d, "loss": 0.125, %s"expert_load": [[{loads}], [{loads}]]}}\n'
    with open(tmp_path / "metrics.jsonl", "w") as file:
        for step in range(1, 600_001):
            file.write(line % (step, "" if step % 10_000 else '"held_out_loss": 0.25, '))
    tracemalloc.start()
    start = time.process_time()
    MetricsLog(tmp_path, 599_000, tensorboard=False).close()
    opened = time.process_time() - start
    found = [(record["step"], record.get("held_out_loss")) for record in spread(tmp_path, print)]
    seconds, (_, most) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert opened < 0.2 and seconds < 5 and most < 2**24
    steps = [step for step, _ in found]
    assert steps == sorted(set(steps)) and steps[0] < 1000 and steps[-1] == 599_000 and len(steps) < 30_000
    assert max(after - before for before, after in itertools.pairwise(steps)) < 1000
    assert [step for step, held_out in found if held_out] == list(range(10_000, 599_000, 10_000))


@pytest.mark.parametrize(
    "piece",
    [
        b"\n" * 2**20,
        b'{"step": 1}\n' * 2**16,
        b'{"step": 9}\n' * 2**16,
        b'{"step": 1, "x": [' + b"[]," * 10**6 + b"0]}\n",
    ],
    ids=("blank", "short", "later", "lists"),
)
def test_a_log_of_anything_is_opened_and_drawn_in_bounded_time_and_memory(tmp_path, piece):
    (tmp_path / "metrics.jsonl").write_bytes(piece * 20)
    tracemalloc.start()
    start = time.process_time()
    MetricsLog(tmp_path, 4, tensorboard=False).close()
    for _ in spread(tmp_path, lambda message: None):
        pass
    seconds, (_, most) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 15 and most < 100 << 20  # tracing takes most of them


def test_of_long_lines_a_picture_takes_fewer_over_the_whole_of_the_log(tmp_path, monkeypatch):
    numbers = ",".join(["0.5"] * 50_000)
    with open(tmp_path / "metrics.jsonl", "w") as file:
        file.writelines(f'{{"step": {step}, "x": [{numbers}]}}\n' for step in range(50))
    at_the_end = metrics_file._WHOLE // len(numbers)
    assert len(list(spread(tmp_path, print))) == 50 - 1  # of what is before the end each, but the one that it cuts
    monkeypatch.setattr(metrics_file, "_LOOKED_AT", 10 * len(numbers))
    steps = [record["step"] for record in spread(tmp_path, print)]
    assert 5 < len(steps) - at_the_end < 15 and steps[0] < 5 and max(b - a for a, b in itertools.pairwise(steps)) < 10


def test_lines_that_a_full_disk_does_not_take_wait_and_none_is_cut(tmp_path):
    said = []
    log = MetricsLog(tmp_path, 0, tensorboard=False, log=said.append)
    log.write({"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))  # as a full disk: a part is written, then EFBIG
    try:
        for step in (2, 3):
            log.write({"step": step, "loss": 0.25})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(said) == 1 and "metrics.jsonl: File too large; training goes on" in said[0]
    assert [record["step"] for record in read_metrics(tmp_path)] == [1]
    log.write({"step": 4})
    log.close()
    assert said[1:] == [f"{tmp_path / 'metrics.jsonl'}: written again"]
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_a_full_disk_under_tensorboard_is_said_once_and_nothing_waits_for_it(tmp_path):
    pytest.importorskip("tensorboardX")
    said = []
    log = MetricsLog(tmp_path, 0, tensorboard=True, log=said.append)
    log.write({"step": 1, "loss": 0.5})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        for step in range(2, 40):
            log.write({"step": step, "loss": 0.25, "expert_load": [[1.0, 1.0]]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.close()
    assert sum("tensorboard" in message for message in said) == 1
    assert len(read_metrics(tmp_path)) == 39


def test_a_folder_that_is_gone_or_in_the_place_of_the_file_ends_no_run(tmp_path):
    said = []
    (tmp_path / "metrics.jsonl").mkdir()
    log = MetricsLog(tmp_path, 0, tensorboard=False, log=said.append)
    log.write({"step": 1})
    (tmp_path / "metrics.jsonl").rmdir()
    log.write({"step": 2})
    tmp_path.rename(tmp_path.with_name("elsewhere"))
    log.write({"step": 3})
    log.close()
    assert [message.partition("metrics.jsonl: ")[2].partition(";")[0] for message in said] == [
        "no regular file",
        "Is a directory",
        "written again",
        "No such file or directory",
        "1 lines are not written",
    ]


def test_a_log_that_is_a_link_is_replaced_and_what_it_points_to_left_alone(tmp_path):
    outside, workdir = tmp_path / "outside", tmp_path / "run"
    workdir.mkdir()
    outside.write_text('{"step": 0, "mine": 1}\n')
    for name in ("metrics.jsonl", "config.json"):
        (workdir / name).symlink_to(outside)
    log = MetricsLog(workdir, 0, tensorboard=False, log=lambda message: None)
    log.write({"step": 1})
    log.close()
    folder.write(workdir / "config.json", "{}")
    assert outside.read_text() == '{"step": 0, "mine": 1}\n'
    assert read_metrics(workdir) == [{"step": 1}] and (workdir / "config.json").read_text() == "{}"


def test_a_tensorboard_that_is_a_link_is_left_alone_and_named_once(tmp_path):
    pytest.importorskip("tensorboardX")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tensorboard").symlink_to("elsewhere")
    said = []
    MetricsLog(tmp_path, 0, tensorboard=True, log=said.append).close()
    (message,) = said
    assert message.startswith(f"{tmp_path}/tensorboard: is a link; ") and message.count("/tensorboard") == 1
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_tensorboard_of_another_version_is_said_once_and_the_lines_are_written(tmp_path, monkeypatch):
    writer = pytest.importorskip("tensorboardX.record_writer")
    monkeypatch.setattr(writer, "RecordWriter", lambda *_, **__: object())
    said = []
    log = MetricsLog(tmp_path, 0, tensorboard=True, log=said.append)
    log.write({"step": 1, "loss": 0.5})
    log.close()
    assert len(said) == 1 and "nothing more is written there" in said[0]
    assert len(read_metrics(tmp_path)) == 1


def test_the_end_of_a_step_is_looked_for_without_reading_long_lines_that_are_no_records(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 4}\n' + ('{"x": [' + "0.1," * 10_000 + "0.1]}\n") * 11)
    monkeypatch.setattr(metrics_file, "_record", None)
    assert metrics_file.cut(path, 4, print) == len('{"step": 4}\n')
