"""Inference on one GPU: decode of some rows, prefill of long prompts; parity first, each figure beside its floor.

    python -m benchmarks.inference --rows=1,16,128 --prefill=8192,131072,1048576 --peer=transformers --json=FILE
    python -m benchmarks.inference --rows=1,16,128 --prefill=8192 --quantize=int8 --json=FILE
    python -m benchmarks.inference --prefill=1048576 --chunk=8192 --picture=docs/prefill.svg
    python -m benchmarks.inference --rows=1 --context=1048576 --profile
    python -m benchmarks.inference --lightning=128

Weights are random. Prompts differ from row to row: 8,192 tokens of one row, 2,048 of 16, 512 of 128 and others, or
--context of all; from 131,072 on what the cache holds is drawn at random. --compile-only compiles what --rows,
--lightning and --prefill measure into jax's cache (JAX_COMPILATION_CACHE_DIR) and measures nothing.
"""

import pathlib
import sys

from benchmarks.inference import decode_rows, lightning_rows, peer, prefill
from benchmarks.inference.bench import Bench
from benchmarks.results import Report, add_json
from mm01_jax.config import command_line
from mm01_jax.loading import FORMS
from tests.command_line import Parser, list_of_whole, one_of, whole


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.inference", __doc__)
    add_json(parser)
    parser.add_argument("--config", default="benchmarks/peer_shape.py", help="the shape")
    parser.add_argument("--rows", type=list_of_whole(1), default=[], help="decoded at once; of each a row of results")
    parser.add_argument("--context", type=whole(1), help="tokens before those that --rows decodes")
    parser.add_argument("--profile", action="store_true", help="where the time of a step of --rows goes")
    parser.add_argument("--compile-only", action="store_true", help="compile what is measured, for jax's cache")
    parser.add_argument("--lightning", type=list_of_whole(1), default=[], help="rows of a lightning layer's step alone")
    parser.add_argument("--prefill", type=list_of_whole(1), default=[], help="tokens of a prompt")
    parser.add_argument("--chunk", type=whole(64), default=16_384, help="tokens that prefill takes in at once")
    parser.add_argument("--quantize", type=one_of("formats", FORMS), help="matrices as int8: " + ", ".join(FORMS))
    parser.add_argument("--peer", type=one_of("peers", [peer.NAME]), help=peer.NAME)
    parser.add_argument("--picture", metavar="FILE", help="time of a chunk against its position, SVG")
    arguments = parser.parse_args(argv)
    if not (arguments.rows or arguments.prefill or arguments.lightning):
        parser.error("got none of --rows, --prefill, --lightning; allowed: any, as --rows=1,16 --prefill=8192")
    report = Report(arguments.json, "benchmarks.inference", argv, packages=("torch", "transformers"))
    config, compile_only = command_line.load_config(arguments.config), arguments.compile_only
    bench = Bench(report, config, quantize=arguments.quantize, compile_only=compile_only)
    for rows in arguments.rows:
        bench.attempt(f"decode of {rows} rows", decode_rows.measure, rows, arguments.context, arguments.profile)
    for rows in arguments.lightning:
        bench.attempt(f"lightning step of {rows} rows", lightning_rows.measure, rows)
    if arguments.prefill:
        bench.attempt("parity of prefill", prefill.parity)
        bench.attempt("prefill", prefill.measure, arguments.prefill, arguments.chunk)
    if compile_only:
        bench.wait_for_compilers()
        return 0
    if arguments.peer:
        bench.attempt(arguments.peer, peer.measure, arguments.rows, arguments.prefill)
    if arguments.picture and bench.curves:
        prefill.picture(bench.curves, pathlib.Path(arguments.picture))
    return 0


if __name__ == "__main__":
    sys.exit(main())
