"""The four runs from nothing to a model that answers about pictures."""

import concurrent.futures
import multiprocessing
import pathlib
import time

from mm01_jax.config import command_line, fields
from mm01_jax.train import loop

# A run and those whose weights it begins from.
RUNS = {"text": (), "tower": (), "stage1": ("text", "tower"), "stage2": ("stage1",)}


def run(root: pathlib.Path, name: str) -> float:
    """Seconds of one run."""
    start, config = time.monotonic(), command_line.load_config(f"vl_tiny_{name}")
    for key in ("data.source", "data.mixed_in"):
        if (path := fields.get(config, key)) is not None:
            config = fields.replace(config, key, str(root / "data" / pathlib.Path(path).name))
    init_from = ",".join(str(root / origin) for origin in RUNS[name]) or None
    loop.run(config, str(root / name), init_from)
    return round(time.monotonic() - start, 1)


def train(root: pathlib.Path) -> dict[str, float]:
    """Seconds of each run. Runs that start from nothing are too small to fill two cores: they go side by side."""
    first = [name for name, origins in RUNS.items() if not origins]
    with concurrent.futures.ProcessPoolExecutor(len(first), multiprocessing.get_context("spawn")) as processes:
        took = dict(zip(first, processes.map(run, [root] * len(first), first), strict=True))
    return took | {name: run(root, name) for name, origins in RUNS.items() if origins}
