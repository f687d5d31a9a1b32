"""The kernels, timed: parity on the very inputs first, then speed, peers beside.

    python -m benchmarks.kernels [OPERATION ...] [--shapes=NAME,...] [--json=FILE] [--no-peers]
    python -m benchmarks.kernels --compile-only-tpu    compilers alone, no TPU
    python -m benchmarks.kernels decode_operations int8_experts --compile-only-tpu

A case whose outputs or gradients are further from the oracle than allowed prints no time, and the exit code is 1. Cases
appear as they are done, and --json keeps them, rewritten after each. A peer that is not installed, or refuses a case,
is left out with the reason.
"""

import argparse
import os
import sys
import time

from benchmarks.kernels import cases
from benchmarks.kernels.measured import Measured, report_rows, text
from benchmarks.results import Report, add_json, device
from tests.command_line import Parser, list_of, one_of

OPERATIONS = {
    "lightning_attention": "lightning",
    "softmax_attention": "softmax",
    "grouped_matmul": "grouped",
    "expert_ffn": "expert_ffn",
    "gated_norm": "gated_norm",
}
COPY_BYTES = {"gpu": 2**30, "tpu": 2**30, "cpu": 2**26}
PACKAGES = ("libtpu", "jax-cuda13-plugin", "jla", "fla-core", "torch")  # compilers and peers
GENERATIONS = ("v5e", "v5p", "v6e")
# Compiled for TPUs here, and timed by `benchmarks.inference`.
COMPILED = DECODE, INT8 = "decode_operations", "int8_experts"


def main(argv: list[str] | None = None) -> int:
    """Runs the command; 0 when every case ran and was within its bounds, 1 otherwise."""
    arguments = _parse(argv)
    report = Report(arguments.json, "benchmarks.kernels", argv, packages=PACKAGES)
    if arguments.compile_only_tpu:
        from benchmarks.kernels import tpu_compiles, tpu_decode, tpu_int8, tpu_table

        others = [name for name in arguments.operations if name not in ("lightning_attention", *COMPILED)]
        failed = tpu_compiles.measure(report, others, arguments.generations, arguments.shapes)
        if "lightning_attention" in arguments.operations:
            failed |= tpu_table.measure(report, arguments.generations)
        if DECODE in arguments.operations:
            failed |= tpu_decode.measure(report, arguments.generations)
        if INT8 in arguments.operations:
            failed |= tpu_int8.measure(report, arguments.generations)
        return failed
    # Peers run in the same process and need device memory too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    from benchmarks.kernels import lightning, timing

    copy = timing.copy_bytes_per_second(COPY_BYTES[jax.default_backend()])
    print(f"{device()}, jax {jax.__version__}, device copy {copy / 1e12:.3f} TB/s read and written", flush=True)
    deadline, done = time.monotonic() + arguments.budget_seconds, []
    for operation in arguments.operations:
        for case in cases.select(operation, arguments.shapes):
            if time.monotonic() > deadline:
                print(f"{operation} {case.name}: skipped, {arguments.budget_seconds:.0f} s are spent", flush=True)
                continue
            print(f"{operation} {case.name} ...", file=sys.stderr, flush=True)
            done.append(run(operation, case, copy, arguments.implementation, not arguments.no_peers))
            print(text(done[-1]), flush=True)
            report_rows(done[-1], report, device(), copy)
    for subject, ratios in lightning.compared([one for one in done if one.operation == "lightning_attention"]).items():
        for what, ratio in ratios.items():
            print(f"{subject}, {what}: {ratio:.3f}")
            report.add(f"{subject}: {what}", ratio, "ratio", device=device())
    return 1 if any(one.failed for one in done) else 0


def run(operation: str, case, copy_bytes_per_second: float, implementation: str | None, peers: bool) -> Measured:
    """One case. One that cannot run, or is wrong, has `failed` and says why; it has no times then."""
    import importlib

    module = importlib.import_module(f"benchmarks.kernels.{OPERATIONS[operation]}")
    found = Measured(operation, case.name, case.sizes)
    try:
        module.measure(case, found, copy_bytes_per_second, implementation, peers)
        if not found.is_right:
            found.failed = "parity: further from the oracle than allowed"
    except Exception as error:  # a case too large for this machine must not cost the cases after it
        found.failed = f"{type(error).__name__}: {str(error)[:400]}"
    return found


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("benchmarks.kernels", __doc__)
    operation = one_of("operation", (*OPERATIONS, *COMPILED))
    parser.add_argument("operations", nargs="*", metavar="OPERATION", type=operation, help="default: all")
    shapes = list_of("shape", cases.names(list(OPERATIONS)))
    parser.add_argument("--shapes", type=shapes, metavar="NAME,...", help="default: all but the tiny ones")
    implementation = one_of("implementation", ("tpu", "gpu", "xla"))
    parser.add_argument("--implementation", type=implementation, help="tpu, gpu or xla; default: what dispatch chooses")
    add_json(parser)
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--budget-seconds", type=float, default=float("inf"), help="start no case after this long")
    parser.add_argument("--compile-only-tpu", action="store_true", help="compile for TPUs that are not here")
    parser.add_argument("--generations", type=list_of("TPU generation", GENERATIONS), default=list(GENERATIONS))
    arguments = parser.parse_args(argv)
    arguments.operations = arguments.operations or list(OPERATIONS)
    if not arguments.budget_seconds > 0:
        parser.error(f"--budget-seconds={arguments.budget_seconds:g}; allowed: a number above 0")
    for name in COMPILED:
        if name in arguments.operations and not arguments.compile_only_tpu:
            parser.error(f"{name} goes with --compile-only-tpu; `python -m benchmarks.inference` times them")
    for shape in arguments.shapes or ():
        if shape not in cases.names([name for name in arguments.operations if name not in COMPILED]):
            parser.error(f"no shape {shape!r} of {', '.join(arguments.operations)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
