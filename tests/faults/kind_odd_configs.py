"""Odd configs, of `odd_configs.py`."""

import json
import pathlib

from tests.faults import odd_configs
from tests.faults.real_steps import server

WORDS = "a config whose values are at the ends of what they may be runs three steps, or is refused by name"
EVERY = 200
MEMBERS = odd_configs.cases()


def judge(odd: dict[str, object], room: pathlib.Path) -> str | None:
    ended = server().call("tests.faults.odd_configs:run", json.dumps(odd), str(room), room=room, seconds=300.0)
    if ended.code or "Traceback" in ended.told or ended.hung:
        return f"{odd}: exit {ended.code}: {ended.told[-800:]}"
    print(f"{odd}: {ended.told.splitlines()[-1]}"[:300]) if "refused with" in ended.told else None
    return f"{odd} wrote {ended.outside}" if ended.outside else None
