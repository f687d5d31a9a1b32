"""A figure of an evaluation: a map of depths and lengths where there are both, else a line a task over lengths."""

import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Any

from mm01_jax.evals import report
from mm01_jax.files import written

FORMATS = (".png", ".svg")


def check(path: str) -> None:
    """ValueError where no figure can be drawn there."""
    if pathlib.Path(path).suffix not in FORMATS:
        raise ValueError(f"--figure={path}: allowed: a file that ends in {' or '.join(FORMATS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(f"--figure={path}: needs matplotlib: pip install 'mm01_jax[plots]'")


def draw(path: str, records: Sequence[dict[str, Any]]) -> None:
    """Writes the figure of such records (`report.record_of`)."""
    from matplotlib.figure import Figure  # an extra (plots)

    shown = Figure(figsize=(7, 4), layout="constrained")
    cells = report.cells(records, by_depth=True)
    tasks = {cell.task for cell in cells}
    if len(tasks) == 1 and len({cell.length for cell in cells}) > 1 and all(cell.depth is not None for cell in cells):
        _map(shown, cells)
    else:
        _lines(shown, report.cells(records))
    with written(path) as file:
        shown.savefig(file, format=pathlib.Path(path).suffix[1:], dpi=120)


def _map(shown, cells: Sequence[report.Cell]) -> None:
    lengths, depths = (sorted({getattr(cell, name) for cell in cells}) for name in ("length", "depth"))
    values = [[float("nan")] * len(lengths) for _ in depths]
    for cell in cells:
        values[depths.index(cell.depth)][lengths.index(cell.length)] = cell.mean
    axes = shown.subplots()
    image = axes.imshow(values, aspect="auto", vmin=0.0, vmax=1.0, cmap="RdYlGn", interpolation="nearest")
    shown.colorbar(image, label=f"score of {cells[0].task}")
    turned = 45 if len(lengths) > 12 else 0  # beside each other they have no room
    axes.set_xticks(range(len(lengths)), [_short(length) for length in lengths], rotation=turned)
    ticks = range(0, len(depths), max(1, len(depths) // 10))
    axes.set_yticks(ticks, [f"{depths[tick]:.0%}" for tick in ticks])
    axes.set(xlabel="tokens", ylabel="depth")


def _lines(shown, cells: Sequence[report.Cell]) -> None:
    axes = shown.subplots()
    for task in dict.fromkeys(cell.task for cell in cells):
        of_task = [cell for cell in cells if cell.task == task]
        low, high = ([getattr(cell, name) for cell in of_task] for name in ("low", "high"))
        means, lengths = [cell.mean for cell in of_task], [cell.length for cell in of_task]
        spread = [[mean - least for mean, least in zip(means, low, strict=True)]]
        spread.append([most - mean for mean, most in zip(means, high, strict=True)])
        axes.errorbar(lengths, means, yerr=[[max(0.0, x) for x in side] for side in spread], label=task, capsize=2)
    axes.axhline(max(cell.chance for cell in cells), color="grey", linestyle="--", label="chance")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens", ylabel="score, 95 %", ylim=(-0.02, 1.02))
    axes.legend(fontsize="small", ncols=2)


def _short(length: int) -> str:
    """1k of 1024, as a person types it."""
    for unit, size in (("m", 2**20), ("k", 2**10)):
        if length % size == 0:
            return f"{length // size}{unit}"
    return str(length)
