"""Pictures of a finished run: the loss, and which experts the tokens went to. Needs the `plots` extra."""

import importlib.util
import pathlib
from typing import Any


def draw(workdir: pathlib.Path, records: list[dict[str, Any]], bigram: float | None) -> list[pathlib.Path]:
    """Writes loss.png and router_load.png into `workdir`; returns their paths, none without matplotlib.

    Args:
      records: lines of metrics.jsonl.
      bigram: held-out bigram entropy in nats, drawn as a line to beat.
    """
    if not importlib.util.find_spec("matplotlib"):
        return []
    import matplotlib

    matplotlib.use("agg")
    return [_loss(workdir / "loss.png", records, bigram), _router_load(workdir / "router_load.png", records)]


def _loss(path: pathlib.Path, records: list[dict[str, Any]], bigram: float | None) -> pathlib.Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, label in (("loss", "training"), ("held_out_loss", "held out")):
        points = [(r["step"], r[name]) for r in records if name in r]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if name != "loss" else None, markersize=3)
    if bigram is not None:
        axes.axhline(bigram, color="grey", linestyle="--", label="held-out bigram entropy")
    axes.set(xlabel="step", ylabel="cross-entropy (nats a token)")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _router_load(path: pathlib.Path, records: list[dict[str, Any]]) -> pathlib.Path:
    from matplotlib import pyplot

    loads = [record["expert_load"] for record in records if "expert_load" in record][-50:]
    mean = [[sum(column) / len(loads) for column in zip(*rows, strict=True)] for rows in zip(*loads, strict=True)]
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    image = axes.imshow(mean, aspect="auto", vmin=0.0, vmax=2.0, cmap="RdBu_r", interpolation="nearest")
    figure.colorbar(image, label="load (1 = balanced)")
    axes.set(xlabel="expert", ylabel="layer", title=f"mean of the last {len(loads)} steps")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
