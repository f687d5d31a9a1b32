"""Every bad input of tests/convert/bad_inputs.py through `mm01-convert from-torch`: exit code and message.

Then random damage (tests/convert/mutations.py) to a directory that has its list of SHA-256, fifty of each kind.

python -m benchmarks.convert_bad_inputs > benchmarks/convert_bad_inputs.md
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
from mm01_jax.convert.__main__ import main
from mm01_jax.convert.check import check
from mm01_jax.convert.from_torch import from_torch
from mm01_jax.convert.to_torch import to_torch
from tests.convert import samples
from tests.faults.convert_cases import CASES, Case, make
from tests.faults.convert_mutations import MUTATIONS

COUNT = 50


def run(case: Case, room: pathlib.Path) -> tuple[int, float, str]:
    """(exit code, seconds, message with the room's name taken out) of one case."""
    source, said = make(room / "in", case), io.StringIO()
    start = time.process_time()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(["from-torch", f"--source={source}", f"--target={room / 'out'}", *case.flags])
    # Behind the lines of progress.
    message = said.getvalue().strip().split("mm01-convert: ")[-1].replace(f"{room}/", "")
    return code, time.process_time() - start, message


def table() -> str:
    """The Markdown table."""
    lines = [
        "# Bad input to `mm01-convert from-torch`",
        "",
        f"{len(CASES)} ways to spoil a sound directory (117 tensors in 3 shards). Written by",
        "`python -m benchmarks.convert_bad_inputs`. Long messages are cut here at 160 characters.",
        "",
        "| input | exit code | message |",
        "| --- | --- | --- |",
    ]
    slowest = 0.0
    for case in CASES:
        with tempfile.TemporaryDirectory() as room:
            code, seconds, message = run(case, pathlib.Path(room))
        slowest = max(slowest, seconds)
        message = " ".join(message.split()).replace("|", "\\|")
        message = message if len(message) <= 160 else message[:157] + "..."
        lines.append(f"| {case.title} | {code} | {message} |")
    print(f"slowest: {slowest:.2f} s", file=sys.stderr)
    return "\n".join([*lines, "", f"The slowest took {slowest:.1f} s of processor time."])


def mutations() -> str:
    """How many of each kind `mm01-convert check` refused."""
    lines = ["", "| random damage, with sha256.json present | tried | refused |", "| --- | --- | --- |"]

    def quiet(line: str) -> None:
        del line

    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        room = pathlib.Path(name)
        from_torch(samples.make(room / "in"), room / "ours", log=quiet)
        to_torch(room / "ours", room / "out", shard_bytes=25_000, log=quiet)
        for mutation in MUTATIONS:
            refused = 0
            for seed in range(COUNT):
                shutil.copytree(room / "out", room / "mutated")
                mutation(room / "mutated", random.Random(f"{mutation.__name__} {seed}"))
                try:
                    check(room / "mutated", log=quiet)
                except CheckpointError:
                    refused += 1
                shutil.rmtree(room / "mutated")
            lines.append(f"| {mutation.__name__.replace('_', ' ')} | {COUNT} | {refused} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
    print(mutations())
