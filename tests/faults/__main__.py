"""Every kind of fault: members tried, how many of them were met as they must be.

    python -m tests.faults [--kind=files,tokenizers] [--counts=full|fast] [--json=FILE]

The default suite tries a tenth of the members of each kind (--counts=fast), the long suite all. Exit code 1 where one
went wrong; which one and how is on stderr.
"""

import sys

from benchmarks.results import Report, add_json, processor
from mm01_jax.progress import Progress
from tests.command_line import Parser, list_of, one_of
from tests.faults import kinds
from tests.terminal import as_in_a_terminal


def main(argv: list[str] | None = None) -> int:
    as_in_a_terminal()
    parser = Parser("tests.faults", __doc__)
    every = kinds.names()
    parser.add_argument("--kind", type=list_of("kind", every), default=every, help="some of them, by commas")
    parser.add_argument("--counts", type=one_of("count", ("full", "fast")), default="full", help="full or fast")
    add_json(parser)
    arguments = parser.parse_args(argv)
    report = Report(arguments.json, "tests.faults", argv, packages=("orbax-checkpoint", "tokenizers", "safetensors"))
    print("| kind | what holds | tried | ok | slowest |\n| --- | --- | --- | --- | --- |")
    good = True
    for kind in map(kinds.load, arguments.kind):
        outcome = _attempt(kind, kind.chosen(arguments.counts))
        good &= not outcome.wrong
        print(f"| {kind.name} | {kind.words} | {outcome.tried} | {outcome.ok} | {outcome.slowest:.1f} s |", flush=True)
        for quantity, value in (("tried", outcome.tried), ("ok", outcome.ok)):
            report.add(f"faults, {kind.name}: {quantity}", value, device=processor())
        report.add(f"faults, {kind.name}: slowest", round(outcome.slowest, 1), unit="s", device=processor())
    return 0 if good else 1


def _attempt(kind: kinds.Kind, members: list[str]) -> kinds.Outcome:
    progress, number = Progress(0, len(members), sys.stderr), 0

    def done(name: str, problem: str | None) -> None:
        nonlocal number
        number += 1
        if problem:
            progress.log(f"{kind.name}: {name}: {problem}")
        progress.show(number, f"{kind.name}: {name}")

    return kinds.attempt(kind, members, done)


if __name__ == "__main__":
    sys.exit(main())
