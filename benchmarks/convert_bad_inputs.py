"""Every bad input of tests/unit/convert_bad_inputs.py through `mm01-convert from-torch`: exit code, seconds, message.

python -m benchmarks.convert_bad_inputs > benchmarks/convert_bad_inputs.md
"""

import contextlib
import io
import pathlib
import sys
import tempfile
import time

from mm01_jax.convert.__main__ import main
from tests.unit.convert_bad_inputs import CASES, Case, make


def run(case: Case, room: pathlib.Path) -> tuple[int, float, str]:
    """(exit code, seconds, message with the room's name taken out) of one case."""
    source, said = make(room / "in", case), io.StringIO()
    start = time.monotonic()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(["from-torch", f"--source={source}", f"--target={room / 'out'}", *case.flags])
    message = said.getvalue().strip().removeprefix("mm01-convert: ").replace(f"{room}/", "")
    return code, time.monotonic() - start, message


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
    return "\n".join([*lines, "", f"Slowest of them: {slowest:.1f} s."])


if __name__ == "__main__":
    print(table())
