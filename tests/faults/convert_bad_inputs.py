"""Every bad input of tests/faults/convert_cases.py through `mm01-convert from-torch`: exit code and message.

Then random damage (tests/faults/convert_mutations.py) to a directory that has its list of SHA-256.

    python -m tests.faults.convert_bad_inputs [--count=50] > tests/faults/convert_bad_inputs.md
"""

import contextlib
import io
import pathlib
import random
import shutil
import sys
import tempfile
import time

from mm01_jax.checkpoint import CheckpointError
from mm01_jax.convert import __main__ as command
from mm01_jax.convert.check import check
from mm01_jax.convert.from_torch import from_torch
from mm01_jax.convert.to_torch import to_torch
from tests.command_line import Parser, whole
from tests.convert import samples
from tests.faults.convert_cases import CASES, Case, make
from tests.faults.convert_mutations import MUTATIONS


def run(case: Case, room: pathlib.Path) -> tuple[int, float, str]:
    """(exit code, seconds, message with the room's name taken out) of one case."""
    source, said = make(room / "in", case), io.StringIO()
    start = time.process_time()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = command.main(["from-torch", f"--source={source}", f"--target={room / 'out'}", *case.flags])
    # Behind the lines of progress.
    message = said.getvalue().strip().split("mm01-convert: ")[-1].replace(f"{room}/", "")
    return code, time.process_time() - start, message


def inputs() -> tuple[str, bool]:
    """The Markdown table, and whether all were refused."""
    lines = [
        "# Bad input to `mm01-convert from-torch`",
        "",
        f"{len(CASES)} ways to spoil a sound directory (117 tensors in 3 shards). Written by",
        "`python -m tests.faults.convert_bad_inputs`. Long messages are cut here at 160 characters.",
        "",
        "| input | exit code | message |",
        "| --- | --- | --- |",
    ]
    slowest, good = 0.0, True
    for case in CASES:
        print(f"{case.title} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as room:
            code, seconds, message = run(case, pathlib.Path(room))
        slowest, good = max(slowest, seconds), good and code == 3
        message = " ".join(message.split()).replace("|", "\\|")
        message = message if len(message) <= 160 else message[:157] + "..."
        lines.append(f"| {case.title} | {code} | {message} |")
    return "\n".join([*lines, "", f"The slowest took {slowest:.1f} s of processor time."]), good


def mutations(count: int) -> tuple[str, bool]:
    """How many of `count` of each kind `mm01-convert check` refused, as a table, and whether it was all of them."""
    lines = ["", "| random damage, with sha256.json present | tried | refused |", "| --- | --- | --- |"]
    total = 0
    with tempfile.TemporaryDirectory() as name:
        exported = export(pathlib.Path(name))
        for mutation in MUTATIONS:
            print(f"{mutation.__name__}, {count} times ...", file=sys.stderr, flush=True)
            streams = (random.Random(f"{mutation.__name__} {seed}") for seed in range(count))
            refused = sum(is_refused(exported, exported / "mutated", mutation, stream) for stream in streams)
            lines.append(f"| {mutation.__name__.replace('_', ' ')} | {count} | {refused} |")
            total += refused
    return "\n".join(lines), total == count * len(MUTATIONS)


def export(room: pathlib.Path) -> pathlib.Path:
    """`room`, with a directory `out` that our export wrote, its SHA-256 beside, and `ours`, the checkpoint of it."""
    with contextlib.redirect_stderr(io.StringIO()):
        from_torch(samples.make(room / "in"), room / "ours", log=_quiet)
        to_torch(room / "ours", room / "out", shard_bytes=25_000, log=_quiet)
    return room


def is_refused(exported: pathlib.Path, directory: pathlib.Path, mutation, stream, **options) -> bool:
    """Whether `mm01-convert check` refuses a mutated copy of the export, made in `directory` and removed.

    With options (what to check against) its own list of SHA-256 is taken away.
    """
    shutil.copytree(exported / "out", directory)
    mutation(directory, stream)
    if options:
        (directory / "sha256.json").unlink()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            check(directory, log=_quiet, **options)
        return False
    except CheckpointError:
        return True
    finally:
        shutil.rmtree(directory)


def _quiet(line: str) -> None:
    del line


def main(argv: list[str] | None = None) -> int:
    parser = Parser("tests.faults.convert_bad_inputs", __doc__)
    parser.add_argument("--count", type=whole(1), default=50, help="random damages of each kind")
    count = parser.parse_args(argv).count
    table, all_refused = inputs()
    print(table, flush=True)
    table, all_mutations_refused = mutations(count)
    print(table)
    return 0 if all_refused and all_mutations_refused else 1


if __name__ == "__main__":
    sys.exit(main())
