"""Accuracy of every mesh against float64 on 16 CPU devices (tests/parallel/every_mesh.py); exits 1 if one is outside.

python -m benchmarks.meshes [--only=PATTERN] [--json=benchmarks/results/meshes.json]
"""

import argparse
import sys

from benchmarks.results import Report, add_json
from tests.command_line import Parser


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.meshes", __doc__)
    parser.add_argument("--only", default="", metavar="PATTERN", help="these meshes")
    add_json(parser)
    arguments = parser.parse_args(argv)
    report, good, device = Report(arguments.json, "benchmarks.meshes", argv), True, "16 CPU devices"
    from tests.parallel import every_mesh

    try:
        chosen = every_mesh.matching(arguments.only)
    except argparse.ArgumentTypeError as error:
        parser.error(f"--only: {error}")
    every_mesh.jax.config.update("jax_num_cpu_devices", 16)
    for line in every_mesh.measure(chosen):
        for kind in every_mesh.KINDS:
            report.add(f"{line.name}: {kind}", line.errors[kind], "of the largest entry", device=device)
        if line.seconds is not None:
            report.add(f"{line.name}: dropped", line.dropped, "assignments", device=device)
            report.add(f"{line.name}: seconds", line.seconds, "s", device=device)
        numbers = " ".join(f"{kind} {line.errors[kind]:.1e}" for kind in every_mesh.KINDS)
        print(f"{line.name}: {numbers}{'' if line.within else ' OUTSIDE'}", flush=True)
        good &= line.within
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
