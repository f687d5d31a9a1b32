"""The pictures of a run: drawn from its metrics, without touching what shows pictures in the process."""

import sys

from matplotlib.image import imread

from mm01_jax.train import report

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
