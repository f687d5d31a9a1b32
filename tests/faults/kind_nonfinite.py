"""Runs that go bad, of `nonfinite.py`."""

import json
import pathlib

from tests.faults import nonfinite
from tests.faults.real_steps import server

WORDS = "no bad rate, weight or batch reaches a checkpoint, and the last good step is restored"
EVERY = 50
MEMBERS = nonfinite.cases()


def judge(bad: dict[str, object], room: pathlib.Path) -> str | None:
    ended = server().call("tests.faults.nonfinite:run", json.dumps(bad), str(room), room=room, seconds=300.0)
    good = ended.code == 0 and "Traceback" not in ended.told and not ended.outside
    return None if good else f"{bad}: exit {ended.code}: {ended.told[-600:]} {ended.outside}"
