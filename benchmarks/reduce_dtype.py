"""Gradients of weights whose sums cross the devices in bfloat16, and in float32, against float64: up to 8 CPU devices.

python -m benchmarks.reduce_dtype [--json=benchmarks/results/reduce_dtype.json]

The model computes in bfloat16 with float32 weights (tests/parallel/reduced.py). A CPU sums bfloat16 in float32 and
rounds the result; what adds in bfloat16 at every device on the way rounds more often.
"""

import sys

from benchmarks.results import Report, add_json
from tests.command_line import Parser

MESHES = {
    "one device": {},
    "data 2": {"data": 2},
    "data 8": {"data": 8},
    "data 4, expert 2": {"data": 4, "expert": 2},
}


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.reduce_dtype", __doc__)
    add_json(parser)
    report = Report(parser.parse_args(argv).json, "benchmarks.reduce_dtype", argv)
    from mm01_jax.config import MeshConfig
    from tests.parallel import reduced
    from tests.parallel.mesh_model import exact

    for name, sizes in MESHES.items():
        found = {kind: reduced.found(MeshConfig(**sizes), kind) for kind in reduced.VARIANTS}
        numbers = {f"error, {kind}": reduced.apart(value, exact()) for kind, value in found.items()}
        for quantity, value in (numbers | {"apart": reduced.apart(*found.values())}).items():
            print(f"{name}: {quantity} {value:.3e}", flush=True)
            report.add(f"{name}: {quantity}", value, "of the gradient's norm", device="8 CPU devices")
    return 0


if __name__ == "__main__":
    sys.exit(main())
