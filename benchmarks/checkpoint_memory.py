"""Memory and speed of saving and restoring a state on one CPU device (tests/checkpoint/memory.py).

python -m benchmarks.checkpoint_memory [--layers=20] [--json=benchmarks/results/checkpoint_memory.json]
"""

import pathlib
import sys
import tempfile

from benchmarks.results import Report, add_json, processor
from tests.command_line import Parser, whole

UNITS = {
    "state_bytes": "bytes",
    "save_adds": "of the state",
    "save_gb_per_s": "GB/s",
    "restore_takes": "of the state",
    "restore_gb_per_s": "GB/s",
}


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.checkpoint_memory", __doc__)
    parser.add_argument("--layers", type=whole(1), default=20, help="of 100 MB")
    add_json(parser)
    arguments = parser.parse_args(argv)
    report = Report(arguments.json, "benchmarks.checkpoint_memory", argv)
    from tests.checkpoint import memory

    print(f"{arguments.layers} layers are saved and restored ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as workdir:
        found = memory.measure(arguments.layers, pathlib.Path(workdir))
    for quantity, value in found.items():
        report.add(f"checkpoint of {arguments.layers} layers: {quantity}", value, UNITS[quantity], device=processor())
        print(f"{quantity}: {value} {UNITS[quantity]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
