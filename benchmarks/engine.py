"""Rows of results of the engine: what its drills counted, how fast it decodes, and how far decode in bfloat16 drifts.

    python -m mm01_jax.inference.drill --random=1024 --schedules=100 --json=/tmp/drill.json
    python -m benchmarks.engine /tmp/drill.json [...] --json=benchmarks/results/engine.json
    python -m benchmarks.engine --rows=1,16,128 --json=benchmarks/results/engine.json
    python -m benchmarks.engine --drift=4096 --json=benchmarks/results/engine.json

A row of a drill has the drill's own command; what drills of one kind have counted is added up. The drift of so many
tokens is that of `tests/inference/drift.py`, with heads of 128 and a width of 1,024, or with --small of 8 and 64.
"""

import json
import math
import pathlib
import re

from benchmarks import engine_rows
from benchmarks.inference.bench import Bench
from benchmarks.results import Report, add_json, device, processor, say_where
from mm01_jax.config import command_line
from tests.command_line import Parser, list_of_whole
from tests.inference import drift


def subject(found: dict) -> str:
    """Of what a drill has written."""
    devices = math.prod(found["mesh"].values())
    place = "one device" if devices == 1 else f"{devices} devices"
    guesses = "with guesses" if found["engine"]["guessed_tokens"] else "without guesses"
    slots = found["engine"]["free_slots"]
    many = "" if slots == 8 else f", {slots} slots"
    lanes = re.search(r"--lanes[= ](\d+)", found["command"])
    many += f", {lanes[1]} lanes" if lanes else ""
    return f"schedules, {place}, width {found['width']:,}, {found['dtype']}, {guesses}{many}"


def counts(found: dict) -> dict[str, float]:
    """The numbers of a drill that stand in tables."""
    engine = found["engine"]
    return {
        **{name: found[name] for name in ("schedules", "requests", "equal", "cancelled")},
        "other tokens": found["differing_tokens"],
        "divergence": found["kl"],
        "hits": engine.get("prefix", {}).get("hits", 0),
        "preempted": engine["preempted"],
        "guessed": engine["guessed_tokens"],
        "compiled in traffic": found["compiled_in_traffic"],
    }


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.engine", __doc__)
    parser.add_argument("drills", nargs="*", metavar="FILE", type=_drill, help="what a drill has written")
    parser.add_argument("--rows", type=list_of_whole(1), default=[], help="decoded at once, beside the bare loop")
    parser.add_argument("--config", default="benchmarks/peer_shape.py", help="the shape of which rows are decoded")
    parser.add_argument("--drift", type=_count, metavar="N", help="measure the drift of so many tokens (of 256 each)")
    parser.add_argument("--small", action="store_true", help="the drift's sizes for a CPU")
    add_json(parser)
    arguments = parser.parse_args(argv)
    say_where()
    report = Report(arguments.json, "benchmarks.engine", argv)
    for (what, on), alike in _by_kind(arguments.drills).items():
        commands = "; ".join(found["command"] for found in alike)
        for quantity in counts(alike[0]):
            together = max if quantity == "divergence" else sum
            value = together(counts(found)[quantity] for found in alike)
            report.add(f"{what}: {quantity}", value, device=on, command=commands)
    if arguments.rows:
        bench = Bench(report, command_line.load_config(arguments.config))
        for rows in arguments.rows:
            bench.attempt(f"decode of {rows} rows", engine_rows.measure, rows)
    if arguments.drift:
        width, head_dim = (64, 8) if arguments.small else (1024, 128)
        ways = {"decode": 1, "one shot": arguments.drift, "chunks of 256": 256}
        for name, found in drift.measure(width, head_dim, arguments.drift, ways):
            for quantity, value in found.items():
                what = f"drift, {arguments.drift:,} tokens, width {width:,}, {name}: {quantity}"
                print(what, report.add(what, value, device=device()).value, flush=True)
    return 0


def _by_kind(drills: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """Of each subject on each device."""
    found: dict[tuple[str, str], list[dict]] = {}
    for drill in drills:
        on = processor() if drill["platform"] == "cpu" else drill["device"]
        found.setdefault((subject(drill), on), []).append(drill)
    return found


def _drill(text: str) -> dict:
    return json.loads(pathlib.Path(text).read_text())


def _count(text: str) -> int:
    count = int(text)
    if count < 256 or count % 256:
        raise ValueError(text)
    return count


if __name__ == "__main__":
    raise SystemExit(main())
