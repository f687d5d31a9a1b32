"""What a run says about itself: what it is at its start, a line while it goes, its result and pictures at its end."""

import collections
import importlib.util
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from mm01_jax import files
from mm01_jax.config import Config
from mm01_jax.model.decoder import TextModel
from mm01_jax.train import metrics_file

_MOST_LOAD = 2**18  # numbers


def describe(name: str, model: TextModel) -> str:
    """The model's size and the machine, at the start."""
    mesh = jax.sharding.get_mesh()
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    weights = sum(x.size for x in jax.tree.leaves(model))
    kind = mesh.devices.flat[0].device_kind
    return f"model {name}: {weights:,} parameters, {mesh.size} x {kind} ({axes}); compiling the first step"


def line(record: dict[str, Any]) -> str:
    """One step's metrics, as `metrics.jsonl` has them."""
    parts = [f"loss {record['loss']:.4f}", f"{record['bits_per_byte']:.3f} bits/byte"]
    if "held_out_loss" in record:
        parts.append(f"held out {record['held_out_loss']:.4f}")
    parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in record:
        parts.append(f"{100 * record['mfu']:.1f} % MFU")
    return "  ".join(parts)


def end(config: Config, root: pathlib.Path, summary: dict[str, float], log: Callable[[str], None]) -> None:
    """What the run achieved, its pictures, and what to type next.

    Args:
      summary: held_out_loss, unigram and bigram in nats a token; empty where nothing was held out.
    """
    if summary:
        log(
            f"held-out loss {summary['held_out_loss']:.4f} nats a token; "
            f"counting on the same targets: unigram {summary['unigram']:.4f}, bigram {summary['bigram']:.4f}"
        )
    try:
        with warnings.catch_warnings():  # a log may have numbers whose difference is none
            warnings.simplefilter("ignore")
            drawn = draw(root, metrics_file.spread(root, log), summary.get("bigram"))
        log(f"wrote {', '.join(map(str, drawn))}" if drawn else "no pictures: pip install 'mm01_jax[plots]'")
    except (OSError, TypeError, ValueError) as error:  # the run is done and saved, whatever its log or the disk is
        log(f"no pictures of {root / metrics_file.NAME}: {error}")
    more = f"--config={root}/config.json --workdir={root} --config.train.steps={2 * config.train.steps}"
    log("next:")
    log(f"  {sys.executable} -m mm01_jax.inference --checkpoint={root} --prompt='def '")
    log(f"  {sys.executable} -m mm01_jax.train {more}")
    log(f"  {sys.executable} -m mm01_jax.evals perplexity --checkpoint={root}")


def draw(workdir: pathlib.Path, records: Iterable[dict[str, Any]], bigram: float | None) -> list[pathlib.Path]:
    """Writes loss.png and router_load.png into `workdir`; returns their paths, none without matplotlib.

    Args:
      records: lines of metrics.jsonl.
      bigram: held-out bigram entropy in nats, drawn as a line to beat.
    """
    if not importlib.util.find_spec("matplotlib"):
        return []
    curves: dict[str, list[tuple[float, float]]] = {"loss": [], "held_out_loss": []}
    loads: collections.deque[np.ndarray] = collections.deque(maxlen=50)
    for record in records:
        for name, points in curves.items():
            if isinstance(record.get(name), float) and abs(record["step"]) < 2**63:  # a text would be a tick of an axis
                points.append((record["step"], record[name]))
        if (load := _load(record)) is not None:
            loads.append(load)
    drawn = [_loss(workdir / "loss.png", curves, bigram)]
    return [*drawn, _router_load(workdir / "router_load.png", loads)] if loads else drawn


def _load(record: dict[str, Any]) -> np.ndarray | None:
    """(layers, experts) of a record; None where it has none, or more than any model."""
    try:
        load = np.array(record.get("expert_load"), np.float32)
    except (ArithmeticError, TypeError, ValueError):
        return None
    return load if load.ndim == 2 and 0 < load.size < _MOST_LOAD else None


def _loss(path: pathlib.Path, curves: dict[str, list[tuple[float, float]]], bigram: float | None) -> pathlib.Path:
    from matplotlib.figure import Figure  # not pyplot, whose backend belongs to who runs this: a notebook shows with it

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label in (("loss", "training"), ("held_out_loss", "held out")):
        if points := curves[name]:
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if name != "loss" else None, markersize=3)
    if bigram is not None:
        axes.axhline(bigram, color="grey", linestyle="--", label="held-out bigram entropy")
    axes.set(xlabel="step", ylabel="cross-entropy (nats a token)")
    axes.legend()
    return _save(figure, path)


def _router_load(path: pathlib.Path, loads: Sequence[np.ndarray]) -> pathlib.Path:
    from matplotlib.figure import Figure

    loads = [load for load in loads if load.shape == loads[-1].shape]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        np.mean(loads, axis=0), aspect="auto", vmin=0.0, vmax=2.0, cmap="RdBu_r", interpolation="nearest"
    )
    figure.colorbar(image, label="load (1 = balanced)")
    axes.set(xlabel="expert", ylabel="layer", title=f"mean of the last {len(loads)} steps")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_major_locator().set_params(integer=True)
    return _save(figure, path)


def _save(figure, path: pathlib.Path) -> pathlib.Path:
    with files.written(path) as file:  # never through a link
        figure.savefig(file, format="png", dpi=120)
    return path
