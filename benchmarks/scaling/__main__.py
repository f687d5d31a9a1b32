"""How a host of GPUs scales, a table a call; rows of results are written when known.

    python -m benchmarks.scaling meshes --json=benchmarks/results/scaling.json
    python -m benchmarks.scaling plans --devices=8 --json=benchmarks/results/scaling_plans.json
    JAX_NUM_CPU_DEVICES=8 python -m benchmarks.scaling meshes --shapes=tiny --steps=1       does it work at all

meshes    steps on one GPU and on all, over every mesh of one, two or three axes, beside the planner's figures.
          Strong scaling keeps the rows of one GPU, weak scaling gives every GPU as many. Losses stay within twice the
          rounding of bfloat16 ("bound": against float32's at the first weights). Planned is what `mm01_jax.plan` says
          of the same step on this many H200s; with plans compiled ahead (--plans) planned/measured for memory, bytes
          of each collective and the bound of a step.
longest   the longest row of --lengths that one GPU trains, and how long one is over all, as `sequence` shards.
exchange  padded against ragged exchange with even and skewed routing; what the check at a start chooses, and its cost.
restart   a run of a process a GPU; its checkpoint restored on one GPU and another mesh, bit for bit; kill -9 of one
          process, and the next start.
serve     the released shape in int8, with as many experts as fit: decode and prefill against the plan.
plans     of `meshes`, each compiled ahead for --devices H200s; nothing is run, no GPU is needed.

Each case is a process: they compile beside each other, then take turns. What fails is said and the others go on; what
is left when --minutes are over is named, not run. --compile-only fills jax's compile cache.
"""

import argparse
import os
import pathlib
import sys

from benchmarks.results import Report, add_json
from benchmarks.scaling.cases import DOCUMENT, ROWS, SCALINGS, Case, meshes
from tests.command_line import Parser, list_of, list_of_whole, one_of, refusal, whole

# Of each table the shapes that it can have; by default all but the one for trying it.
TABLES = {
    "meshes": ("bench_1b", "text_01_period", "tiny"),
    "longest": ("bench_1b", "tiny"),
    "exchange": ("bench_1b", "text_01_period", "tiny"),
    "restart": ("bench_1b", "tiny"),
    "serve": ("text_01", "tiny"),
    "plans": ("bench_1b", "text_01_period", "tiny"),
}
SHAPES = sorted({shape for shapes in TABLES.values() for shape in shapes})
PLANS = pathlib.Path(__file__).parents[1] / "results" / "scaling_plans.json"


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.scaling", __doc__)
    parser.add_argument("table", nargs="?", type=one_of("table", TABLES), help=", ".join(TABLES))
    add_json(parser)
    parser.add_argument("--devices", type=whole(2), help="how many; default: all that jax sees")
    parser.add_argument("--minutes", type=float, default=9.0, help="no case begins after that")
    parser.add_argument("--compile-only", action="store_true", help="fills the compile cache, runs nothing")
    parser.add_argument("--shapes", type=list_of("shape", SHAPES), help="default: all of a table but tiny")
    parser.add_argument("--scaling", type=list_of("scaling", SCALINGS), default=list(SCALINGS))
    parser.add_argument("--axes", type=list_of_whole(1), default=[1, 2, 3], help="meshes of so many axes")
    parser.add_argument("--steps", type=whole(1), default=8, help="timed, after one that warms up")
    parser.add_argument("--at-once", type=whole(1), default=16, help="cases that compile beside each other")
    parser.add_argument("--lengths", type=list_of_whole(1), default="688128,786432,884736", help="tokens a GPU, rising")
    parser.add_argument("--one-document", action="store_true", help="longest: the row is one document")
    parser.add_argument("--plans", type=pathlib.Path, default=PLANS, metavar="FILE", help="meshes: rows of plans")
    parser.add_argument("--missing", action="store_true", help="meshes, plans: only those that FILE of --json lacks")
    parser.add_argument("--shapes-alone", action="store_true", help="plans: compile nothing")
    arguments = parser.parse_args(argv)
    if arguments.table is None:
        parser.error(f"no table is named; allowed: {', '.join(TABLES)}")
    allowed = TABLES[arguments.table]
    arguments.shapes = arguments.shapes or list(allowed[:-1])
    for shape in arguments.shapes:
        if shape not in allowed:
            parser.error(refusal(f"shape of {arguments.table}", shape, allowed))
    report = Report(arguments.json, "benchmarks.scaling", argv)
    if arguments.table == "plans":
        return _plans(report, arguments)
    return _measured(report, arguments)


def _measured(report: Report, arguments: argparse.Namespace) -> int:
    from benchmarks.scaling.turns import Turns, seen

    limits = {name: getattr(arguments, name) for name in ("minutes", "at_once", "compile_only")}
    _TABLES[arguments.table](Turns(report, seen(arguments.devices), **limits), arguments)
    return 0


def _meshes(turns, arguments: argparse.Namespace) -> None:
    from benchmarks.scaling import train

    cases = _cases(turns.devices.number, arguments, turns.report)
    train.meshes(turns, cases, arguments.steps, arguments.plans)


def _longest(turns, arguments: argparse.Namespace) -> None:
    from benchmarks.scaling import train

    document = 0 if arguments.one_document else DOCUMENT
    for shape in arguments.shapes:
        cases = [Case(shape, "row", (), 1, length, document) for length in arguments.lengths]
        train.longest(turns, cases, turns.devices.number)


def _exchange(turns, arguments: argparse.Namespace) -> None:
    from benchmarks.scaling import exchange

    exchange.measure(turns, arguments.shapes)


def _restart(turns, arguments: argparse.Namespace) -> None:
    from benchmarks.scaling import restart

    restart.measure(turns, arguments.shapes)


def _serve(turns, arguments: argparse.Namespace) -> None:
    from benchmarks.scaling import serve

    serve.measure(turns, arguments.shapes)


def _plans(report: Report, arguments: argparse.Namespace) -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"
    from benchmarks.scaling import ahead

    if arguments.devices is None:
        raise ValueError("plans: --devices is not given; allowed: 2, 4 or 8 H200s, say --devices=8")
    cases = [case for case in _cases(arguments.devices, arguments, report) if case.scaling != "bound"]
    ahead.measure(report, cases, compile_it=not arguments.shapes_alone)
    return 0


def _cases(devices: int, arguments: argparse.Namespace, report: Report) -> list[Case]:
    """Of each shape and scaling one GPU first, then meshes of few axes."""
    found, last = [], "step"  # what a case that ran to its end has
    if arguments.table == "plans":
        last = "planned memory" if arguments.shapes_alone else "planned best"
    known = {row.subject for row in report.before if row.quantity == last}
    for shape in arguments.shapes:
        for scaling in arguments.scaling:
            rows = max(ROWS, devices) if scaling == "strong" else ROWS
            found += [Case(shape, "bound", (), rows)] if scaling == "strong" else []
            allowed = [mesh for mesh in meshes(devices) if len(mesh) in arguments.axes]
            found += [Case(shape, scaling, mesh, rows) for mesh in ((), *allowed)]
    return [case for case in found if not (arguments.missing and case.mesh and case.name in known)]


_TABLES = {"meshes": _meshes, "longest": _longest, "exchange": _exchange, "restart": _restart, "serve": _serve}

if __name__ == "__main__":
    sys.exit(main())
