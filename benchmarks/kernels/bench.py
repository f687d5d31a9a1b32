"""`python -m benchmarks.kernels.bench lightning_attention`: parity on the very inputs first, then speed.

A row whose outputs or gradients are further from the oracle than allowed prints no time. Rows appear as they are
done; `--json` keeps them, rewritten after every row, so that an interrupted run keeps what it had.
"""

import argparse
import json
import os
import pathlib
import sys
import time

# Peers run in the same process and need device memory too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402

from benchmarks.kernels import (
    lightning,  # noqa: E402
    timing,  # noqa: E402
    tpu_table,  # noqa: E402
)

COPY_BYTES = {"gpu": 2**30, "tpu": 2**30, "cpu": 2**26}


def main(argv: list[str] | None = None) -> int:
    """Runs the command; 0 when every row ran and was within its bounds, 1 otherwise."""
    arguments = _parse(argv)
    if arguments.compile_only_tpu:
        return tpu_table.write(arguments.table, arguments.generations.split(","))
    platform = jax.default_backend()
    device = jax.devices()[0].device_kind
    copy = timing.copy_bytes_per_second(COPY_BYTES[platform])
    report = {"device": device, "jax": jax.__version__, "copy_bytes_per_second": copy, "rows": []}
    print(f"{device}, jax {jax.__version__}, device copy {copy / 1e12:.3f} TB/s read and written", flush=True)
    started, failures = time.monotonic(), 0
    for case in lightning.select(arguments.shapes):
        if time.monotonic() - started > arguments.budget_seconds:
            print(f"{case.name}: skipped, the budget of {arguments.budget_seconds:.0f} s is spent", flush=True)
            continue
        row = lightning.run(case, copy, implementation=arguments.implementation, peers=not arguments.no_peers)
        failures += "failed" in row
        report["rows"].append(row)
        print(lightning.text(row), flush=True)
        if arguments.json:
            pathlib.Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")
    for line in lightning.ratios(report["rows"]):
        print(line)
    return 1 if failures else 0


def _parse(argv):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.bench", description=__doc__.split("\n")[0])
    parser.add_argument("operation", choices=["lightning_attention"])
    parser.add_argument("--shapes", help=f"comma-separated names, default all: {', '.join(lightning.CASES)}")
    parser.add_argument("--implementation", choices=["tpu", "gpu", "xla"], help="default: what dispatch chooses")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--budget-seconds", type=float, default=float("inf"), help="start no row after this long")
    parser.add_argument("--compile-only-tpu", action="store_true", help="compile for TPUs that are not here")
    parser.add_argument("--table", default="benchmarks/lightning_tpu_compile.md", help="where that table goes")
    parser.add_argument("--generations", default="v5e,v5p,v6e")
    arguments = parser.parse_args(argv)
    try:
        lightning.select(arguments.shapes)
    except ValueError as error:
        parser.error(str(error))
    return arguments


if __name__ == "__main__":
    sys.exit(main())
