"""Steps of a compiled program on rows of their own, timed as they come in a run: for `benchmarks.mesh` and its ways."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax

from benchmarks.mesh_rows import place, rows
from mm01_jax.config import Config

STRETCHES = 3  # of steps that are dispatched one behind the other; the middle one counts: others may share the host


@dataclasses.dataclass(frozen=True)
class Ran:
    """Steps: seconds of one, and what each reported. refused: of those whose metrics were read."""

    second: float
    losses: list[float]
    loads: list[float]
    refused: float


def ran(
    config: Config, mesh: jax.sharding.Mesh, program, state, *, steps: int, warm: bool, tell: Callable[[str], None]
):
    """(the state, the last rows, `Ran`): steps on rows of their own, each waited for; where the first is to be left
    out (`warm`), as many again three times, one dispatched behind the other, and timed together.

    So they come in a run, which fetches a step's metrics beside the next one.
    """
    losses, loads, seconds, refused = [], [], [], 0.0
    for number in range(steps + warm):
        batch = place(rows(config, number), config, mesh)
        jax.block_until_ready((state, batch))
        start = time.monotonic()
        state, metrics = program(state, batch)
        losses.append(float(metrics["loss"]))  # waits
        seconds.append(time.monotonic() - start)
        loads.append(float(metrics["expert_load"].max()))
        refused += float(metrics["refused"])
        tell(f"step {number} {seconds[-1]:.3f} s, loss {losses[-1]:.5f}, load {loads[-1]:.2f}")
    if warm:
        seconds = []
        for _ in range(STRETCHES):
            start = time.monotonic()
            for _ in range(steps):
                state, metrics = program(state, batch)
            jax.block_until_ready(state)
            seconds.append((time.monotonic() - start) / steps)
        refused += float(metrics["refused"])
    return state, batch, Ran(statistics.median(seconds), losses, loads, refused)
