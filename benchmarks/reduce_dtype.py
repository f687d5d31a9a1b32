"""Gradients of weights whose sums cross the devices in bfloat16, and in float32, against float64: 8 CPU devices.

python -m benchmarks.reduce_dtype [--json=benchmarks/results/reduce_dtype.json]

The model computes in bfloat16 with float32 weights (tests/parallel/mesh_model.py). A CPU sums bfloat16 in float32 and
rounds the result; who adds in bfloat16 at every device on the way rounds more often.
"""

import sys

from benchmarks.results import Report, add_json
from tests.command_line import Parser

MESHES = {
    "data 8": {"data": 8},
    "data 4, expert 2": {"data": 4, "expert": 2},
    "sequence 4": {"sequence": 4},
    "data 2, expert 2, sequence 2": {"data": 2, "expert": 2, "sequence": 2},
}


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.reduce_dtype", __doc__)
    add_json(parser)
    arguments = parser.parse_args(argv)
    report = Report(arguments.json, "benchmarks.reduce_dtype", argv)
    from tests.parallel import reduced

    for name, sizes in MESHES.items():
        for quantity, value in reduced.measured(sizes).items():
            print(f"{name}: {quantity} {value:.3e}", flush=True)
            report.add(f"{name}: {quantity}", value, "of the gradient's norm", device="8 CPU devices")
    return 0


if __name__ == "__main__":
    sys.exit(main())
