"""Steps of the 1 B shape on two GPUs, each axis several ways: messages by NCCL, or as copies by the GPU's copy engines.

    python -m benchmarks.mesh_ways warm                     compiles every way into jax's cache, runs nothing
    python -m benchmarks.mesh_ways run --json=benchmarks/results/mesh_two_h200s_ways.json
    JAX_NUM_CPU_DEVICES=2 python -m benchmarks.mesh_ways run --shapes=tiny        does it work at all

The ways: {ways}.

-permuted: every gather, scattered sum and exchange of floats that the model writes is copies (`compute.collectives`),
other sums and what XLA makes of shardings are not; -gathered: all tokens go to every expert shard; -rows: rows are cut
between mixers; -twice: as many rows a GPU as one has alone; -4: so many messages beside each other.

Each way is a process: the plain ones compile beside each other, then the rest, which take over how their kernels are
tuned; then they run one after another, with nothing beside. Rows are written when they are known. A way that fails or
hangs is said, and the others go on; the exit code is then 1. After `warm`, `run` needs 10 to 20 s a way.
"""

import os
import sys

from benchmarks.mesh_ways.ways import WAYS
from benchmarks.results import Report, add_json
from tests.command_line import Parser, list_of, one_of, whole

VERBS = ("warm", "run")


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.mesh_ways", __doc__.format(ways=", ".join(WAYS)))
    parser.add_argument("verb", nargs="?", type=one_of("verb", VERBS), help="warm or run")
    add_json(parser)
    parser.add_argument("--ways", type=list_of("way", WAYS), default=list(WAYS), help="default: all")
    parser.add_argument("--shapes", type=one_of("shapes", ("bench_1b", "tiny")), default="bench_1b")
    parser.add_argument("--steps", type=whole(1), default=8, help="timed together, three times")
    parser.add_argument("--seconds", type=whole(1), default=540, help="no way begins after that")
    parser.add_argument("--watch", type=whole(1), default=60, help="seconds of a turn; what takes longer hangs")
    parser.add_argument("--at-once", type=whole(1), default=20, help="ways that compile beside each other")
    arguments = parser.parse_args(argv)
    if arguments.verb is None:
        parser.error(f"warm or run? allowed: {', '.join(VERBS)}")
    _cached()
    from benchmarks.mesh_ways.measured import Measured
    from benchmarks.scaling.turns import Turns, seen

    report = Report(arguments.json if arguments.verb == "run" else None, "benchmarks.mesh_ways", argv)
    limits = {"minutes": arguments.seconds / 60, "at_once": arguments.at_once, "compile_only": arguments.verb == "warm"}
    turns = Turns(report, seen(2), **limits)
    jobs = [Measured(WAYS[name], arguments.shapes, arguments.steps, arguments.watch) for name in arguments.ways]
    found: dict = {}
    for plain in (True, False):
        for worker, _ in turns.ready([job for job in jobs if job.way.plain == plain]):
            if values := turns.turn(worker):
                found[worker.job.way] = values
                _say(turns, worker.job.way, values, found)
    return int(any(row.quantity == "not run" for row in report.rows))


def _cached() -> None:
    """Programs and how their kernels were tuned go from `warm` to `run`, and from the plain ways to the others."""
    from mm01_jax.compile_cache import default_folder

    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(default_folder()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def _say(turns, way, values: dict, found: dict) -> None:
    """A way's line, and its rows beside one GPU's, where that ran: speed, and losses where the rows are the same."""
    from benchmarks.mesh_ways.ways import Way

    line, alone = f"{values['step']:.2f} ms, {values['speed']:,.0f} tokens/s", found.get(Way(None))
    if alone and way.axis:
        rows = [("against one", values["speed"] / alone["speed"], "ratio")]
        line += f", {rows[0][1]:.3f} x one"
        if way.times == 1:
            losses = [name for name in values if name.startswith("loss ")]
            apart = max(abs(values[name] / alone[name] - 1) for name in losses)
            rows.append(("difference", apart, "relative"))
            line += f", losses differ by {apart:.1e}"
        turns.add(way.subject, rows)
    shown = ("computing", "messages", "exposed", "idle", "our kernels", "products", "other kernels")
    line += "".join(f", {name} {values[name]:.1f}" for name in shown if name in values)
    turns.tell(f"{way.subject}: {line}")


if __name__ == "__main__":
    sys.exit(main())
