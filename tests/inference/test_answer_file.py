"""Laws of a file of answers: cut off anywhere it goes on to the same bytes, never from answers of something else."""

import json
import os
import tracemalloc

import pytest

from mm01_jax.inference import answer_file
from mm01_jax.inference.answer_file import Begun
from mm01_jax.inference.asked import Answer

SAMPLES = (1, 3, 1, 2)
FROM = {"weights": "abc", "temperature": 0.5}


def answers(first: int = 0):
    for number, count in [*enumerate(SAMPLES)][first:]:
        for sample in range(count):
            yield {"prompt": f"p{number}", "sample": sample}, Answer(f"é{number}.{sample}\n", "stop")


def write_all(path) -> bytes:
    begun = answer_file.begin(str(path), FROM, SAMPLES)
    answer_file.finish(str(path), begun, answers(begun.prompts))
    return path.read_bytes()


def test_cut_off_at_any_byte_it_goes_on_to_the_same_file(tmp_path):
    whole = write_all(tmp_path / "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    lines = whole.splitlines(keepends=True)
    ends = [sum(map(len, lines[:n])) for n in (0, 1, 4, 5, 7)]
    for size in range(len(whole) + 1):
        out = tmp_path / f"cut{size}"
        answer_file.begin(str(out), FROM, SAMPLES)
        out.with_name(f"{out.name}.partial").write_bytes(whole[:size])
        prompts = max(n for n, end in enumerate(ends) if end <= size)
        assert answer_file.begin(str(out), FROM, SAMPLES) == Begun(prompts, ends[prompts])
        assert write_all(out) == whole
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


@pytest.mark.parametrize("line", [b"\n", b"{}\n", b'[{"text": ""}]\n', b'{"text": 1}\n', b"\0" * 40 + b"\n"])
def test_a_line_that_is_no_answer_is_refused_with_the_file(tmp_path, line):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    answer_file.begin(str(out), FROM, SAMPLES)
    partial.write_bytes(json.dumps({"text": "x"}).encode() + b"\n" + line)
    with pytest.raises(ValueError, match="out.partial: has a line that is no answer; remove it to begin anew"):
        answer_file.begin(str(out), FROM, SAMPLES)


@pytest.mark.parametrize("said", ['{"mine": 1}', "[1]", "text", '{"weights": "abc", "temperature": 0.5, "more": 1}'])
def test_what_is_not_ours_is_not_replaced_though_no_answers_lie_beside_it(tmp_path, said):
    out, told = tmp_path / "out", tmp_path / "out.partial.json"
    told.write_text(said)
    with pytest.raises(ValueError, match="out.partial.json: says not what answers follow from; remove it"):
        answer_file.begin(str(out), FROM, SAMPLES)
    assert told.read_text() == said
    told.write_text(json.dumps(FROM | {"weights": "of other answers, which are gone"}))
    assert answer_file.begin(str(out), FROM, SAMPLES) == Begun()


def test_a_line_of_holes_is_refused_in_bounded_memory(tmp_path):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    answer_file.begin(str(out), FROM, SAMPLES)
    with open(partial, "wb") as file:
        file.truncate(30 << 30)
    tracemalloc.start()
    with pytest.raises(ValueError, match="no answer"):
        answer_file.begin(str(out), FROM, SAMPLES)
    assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    tracemalloc.stop()


def test_an_interrupted_result_is_not_under_its_name(tmp_path):
    def interrupted():
        yield next(answers())
        raise KeyboardInterrupt

    begun = answer_file.begin(str(tmp_path / "out"), FROM, SAMPLES)
    with pytest.raises(KeyboardInterrupt):
        answer_file.finish(str(tmp_path / "out"), begun, interrupted())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.partial", "out.partial.json"]
    assert answer_file.begin(str(tmp_path / "out"), FROM, SAMPLES).prompts == 1


def test_answers_of_something_else_are_left_alone_and_said_to_be(tmp_path):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    answer_file.begin(str(out), FROM, SAMPLES)
    partial.write_text(json.dumps({"text": "x"}) + "\n")
    with pytest.raises(ValueError, match="partial: holds answers of temperature=0.5, not 0.7; remove it to begin anew"):
        answer_file.begin(str(out), FROM | {"temperature": 0.7}, SAMPLES)
    (tmp_path / "out.partial.json").unlink()
    with pytest.raises(ValueError, match="holds answers to nobody knows what; remove it to begin anew"):
        answer_file.begin(str(out), FROM, SAMPLES)
    assert json.loads(partial.read_text()) == {"text": "x"}


@pytest.mark.parametrize("name", ["out.partial", "out.partial.json"])
@pytest.mark.parametrize("kind", ["link out", "FIFO", "folder", "deep", "another's"])
def test_what_another_put_in_the_place_of_answers_is_refused_by_name_and_left_alone(tmp_path, name, kind):
    (tmp_path / "outside").write_text("another's")
    folder = tmp_path / "in"
    folder.mkdir()
    answer_file.begin(str(folder / "out"), FROM, SAMPLES)
    (folder / "out.partial").write_text("")
    place = folder / name
    place.unlink()
    if kind == "link out":
        place.symlink_to(tmp_path / "outside")
    elif kind == "FIFO":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.write_text("[" * 5000 + "\n" if kind == "deep" else json.dumps({"weights\nmm01: done": 1}) + "\n")
    with pytest.raises(ValueError, match="out.partial") as refused:
        answer_file.begin(str(folder / "out"), FROM, SAMPLES)
    assert "\n" not in str(refused.value)
    assert (tmp_path / "outside").read_text() == "another's" and os.path.lexists(place)
