"""Is the experts' exchange overlapped? Read off programs compiled for chips that are not here.

    python -m benchmarks.overlap --target=v5p [--groups=1,2] [--json=benchmarks/results/overlap.json]
    python -m benchmarks.overlap --target=h100                (with jax's CUDA plugin)

Compiles forward and backward of one expert layer of MiniMax-Text-01's widths for four chips, and counts the matmuls
between the start and the end of each all-to-all of rows (tests/parallel/overlapped.py).
"""

import sys
import time

from benchmarks.results import Report, add_json
from tests.command_line import Parser, list_of_whole, one_of, whole


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.overlap", __doc__)
    parser.add_argument("--target", required=True, type=one_of("target", ("v5p", "h100")), help="v5p or h100")
    parser.add_argument(
        "--groups", default=[1, 2], type=list_of_whole(1), metavar="N,...", help="token groups; default 1,2"
    )
    parser.add_argument("--tokens", type=whole(1), default=4096, help="of one chip")
    parser.add_argument("--no-options", action="store_true", help="without mm01_jax/parallel/overlap.py's options")
    add_json(parser)
    arguments = parser.parse_args(argv)
    report = Report(arguments.json, "benchmarks.overlap", argv, packages=("libtpu", "jax-cuda13-plugin"))
    import jax

    jax.config.update("jax_platforms", "cpu")
    for groups in arguments.groups:
        print(f"{arguments.target}, {groups} groups ...", file=sys.stderr, flush=True)
        measure(report, arguments.target, groups, arguments.tokens, not arguments.no_options)
    return 0


def measure(report: Report, target: str, groups: int, tokens: int, options: bool) -> None:
    """Rows of one program."""
    from tests.parallel import overlapped

    start = time.monotonic()
    compiled = overlapped.compile_layer(target, groups, tokens=tokens, options=options)
    found, memory = overlapped.inspect(compiled.as_text()), compiled.memory_analysis()
    subject = f"{target} x 4, options {'yes' if options else 'no'}, groups {groups}"
    device = f"compiled for {target} x 4"
    report.add(f"{subject}: all-to-alls of rows", found.exchanges, device=device)
    report.add(f"{subject}: asynchronous", found.asynchronous, device=device)
    report.add(f"{subject}: overlapped", found.overlapped, device=device)
    for count in found.matmuls_inside:
        report.add(f"{subject}: matmuls inside", count, device=device)
    report.add(f"{subject}: temporary", memory.temp_size_in_bytes / 2**30, "GiB", device=device)
    report.add(f"{subject}: compile", time.monotonic() - start, "s", device=device)
    print(
        f"{subject}: {found.overlapped} of {found.exchanges} overlapped, matmuls inside {found.matmuls_inside}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
