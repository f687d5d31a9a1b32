"""The pictures of a run: drawn from its metrics, without touching what shows pictures in the process."""

import json
import sys

from matplotlib.image import imread

from mm01_jax.train import report
from tests import small

RECORDS = [
    {"step": step, "loss": 5.0 - step, "expert_load": [[0.5, 1.5], [1.0, 1.0]]}
    | ({"held_out_loss": 4.0} if step == 2 else {})
    for step in (1, 2, 3)
]


def test_pictures_are_drawn_without_pyplot_whose_backend_is_the_callers(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    paths = report.draw(tmp_path, RECORDS, 3.5)
    assert [path.name for path in paths] == ["loss.png", "router_load.png"]
    for path in paths:
        assert imread(path).shape[:2] == (480, 840) and imread(path)[..., :3].std() > 0.01  # something is on it
    assert "matplotlib.pyplot" not in sys.modules


def test_without_loads_of_experts_there_is_the_loss_alone(tmp_path):
    records = [{"step": record["step"], "loss": record["loss"]} for record in RECORDS]
    assert [path.name for path in report.draw(tmp_path, records, None)] == ["loss.png"]


HUGE = 10**400
ODD = [
    {"step": 1, "loss": "\x1b[2J", "expert_load": "many"},
    {"step": HUGE, "loss": 0.5, "expert_load": [[HUGE]]},
    {"step": 2, "loss": HUGE, "expert_load": [[0.5], [0.5, 1.5]]},
    {"step": 3, "loss": {"of": []}, "expert_load": [[[1.0]]]},
    {"step": 4, "loss": float("inf"), "held_out_loss": float("nan"), "expert_load": []},
    {"step": 5, "expert_load": {"0": [1.0]}},
    {"step": 6, "loss": None, "expert_load": [[1.0] * 600] * 600},
]


def test_records_of_anything_are_no_part_of_a_picture_and_end_no_run(tmp_path):
    many = [{"step": step, "loss": f"a text {step}"} for step in range(20_000)]  # each would be a tick of an axis
    assert [path.name for path in report.draw(tmp_path, [*ODD, *many], None)] == ["loss.png"]
    assert [path.name for path in report.draw(tmp_path, [*ODD, *RECORDS], None)] == ["loss.png", "router_load.png"]


def test_numbers_at_the_ends_of_all_that_there_are_are_drawn_in_silence(tmp_path, recwarn):
    ends = [{"step": 2**62, "loss": 1e308, "expert_load": [[1e308]]}, {"step": -(2**62), "loss": -1e308}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in ends * 2))
    report.end(small.config(tmp_path), tmp_path, {}, lambda _: None)
    assert not recwarn.list
