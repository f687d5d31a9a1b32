"""The load generator asks what it says, counts what comes, and says what failed."""

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("llguidance")

from benchmarks import results, serve  # noqa: E402
from tests.inference.serve import fronts  # noqa: E402


def load(workload: str) -> serve.Load:
    return serve.Load(workload, prompt=16, answer=4, vocabulary=100, streamed=True)


def test_shared_prompts_are_alike_as_far_as_they_are_shared_and_random_ones_are_not():
    shared, random = (
        [next(prompts) for _ in range(2)] for prompts in (load("shared").prompts(1), load("random").prompts(1))
    )
    assert shared[0][:12] == shared[1][:12] and shared[0][12:] != shared[1][12:]
    assert random[0][:12] != random[1][:12] and all(len(prompt) == 16 for prompt in shared + random)


def test_percentiles_count_answers_that_came_alone():
    good = serve.Asked(0.01, 0.05, [0.03, 0.01], 0.02, 3, 8, None)
    found = serve.figures([good, serve.Asked(0, 0, [], None, 0, 0, "status 500")], seconds=0.5)
    assert (found["failed"][0], found["tokens a second"][0], found["prompt tokens reused"][0]) == (1, 6, 8)
    assert found["between events, p50"][0] == pytest.approx(20) and found["between events, p99"][0] > 29
    assert found["first token, p99"][0] == pytest.approx(10) and found["between tokens, p50"][0] == pytest.approx(20)


@pytest.mark.parametrize("flags", [[], ["--whole"]])
def test_every_number_of_users_has_its_rows_and_nothing_fails(tmp_path, capsys, flags):
    file, picture = tmp_path / "rows.json", tmp_path / "picture.svg"
    asked = [
        "--users=1,3",
        "--requests=6",
        "--prompt=16",
        "--answer=4",
        f"--json={file}",
        f"--picture={picture}",
        *flags,
    ]
    with fronts.running() as running:
        assert serve.main([f"--url=http://127.0.0.1:{running.port}", *asked]) == 0
    rows = {row.what.partition(" answers of 4, ")[2]: row for row in results.read(file)}
    how = "whole" if flags else "streamed"
    assert rows[f"{how}, 3 users: failed"].value == 0 and rows[f"{how}, 1 users: requests"].value == 6
    assert rows[f"{how}, 3 users: tokens a second"].value > 0
    assert not flags or not any("between" in what for what in rows)  # streamed, all may come at once
    assert "<svg" in picture.read_text() and len(capsys.readouterr().out.splitlines()) == 3


def test_an_address_where_no_server_answers_is_said_in_a_line():
    with pytest.raises(ValueError, match="--url=http://127.0.0.1:9: got .* allowed: the address of an mm01-serve"):
        serve.main(["--url=http://127.0.0.1:9"])


def test_what_a_server_refuses_is_counted_as_failed(capsys):
    with fronts.running(slots=2) as running:
        asked = [f"--url=http://127.0.0.1:{running.port}", "--users=1", "--requests=2", f"--prompt={fronts.CONTEXT}"]
        assert serve.main(asked) == 1
    assert "status 400" in capsys.readouterr().err
