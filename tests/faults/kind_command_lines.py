"""Wrong command lines and configs, of `command_lines.py`."""

import atexit
import functools
import json
import pathlib

from tests.faults import command_lines
from tests.faults.forked import Server

WORDS = "a wrong command line or config is refused within 2 s in at most 24 lines, before any work"
_CASES = command_lines.cases()
MEMBERS = {title: _CASES[title] for title in command_lines.spread(list(_CASES))}


@functools.cache
def _server() -> Server:
    server = Server("tests.faults.command_lines", environment={"JAX_ENABLE_COMPILATION_CACHE": "0"}).__enter__()
    atexit.register(server.__exit__)
    return server


def judge(argv: list[str], room: pathlib.Path) -> str | None:
    (room / "in").mkdir()
    command_lines.lay_out(room / "in")
    before = sorted(path.name for path in (room / "in").iterdir())
    typed = [text.replace("{room}", str(room)) for text in argv]
    ended = _server().call("tests.faults.command_lines:run", json.dumps(typed), room=room)
    if ended.code not in (2, 3) or "Traceback" in ended.told or ended.told.count("\n") > 24:
        return f"{typed}: exit {ended.code}: {ended.told[-600:]}"
    if not ended.told.startswith(f"{argv[0]}: ") or "\x1b" in ended.told:
        return f"{typed}: said {ended.told[:300]!r}"
    left = sorted(path.name for path in (room / "in").iterdir())
    return None if left == before and not ended.outside else f"{typed}: left {left} and {ended.outside}"
