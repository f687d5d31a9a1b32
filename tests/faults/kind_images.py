"""Images that are none, of `hostile_images.py`, where data are read and as `mm01-generate --image`."""

import pathlib
import re

from tests.faults import hostile_images

WORDS = "an image that is none is refused in one line that names it, within half a second and 50 MiB"
MEMBERS = {name: name for name in hostile_images.CASES}
SECONDS, MEMORY = 0.5, 50 << 20


def judge(name: str, room: pathlib.Path) -> str | None:
    words = hostile_images.CASES[name][1]
    (room / "data").mkdir()
    said, seconds = hostile_images.refusal(name, room / "data")
    if not said.startswith("picture: ") or "\n" in said or not re.search(words, said):
        return f"said {said!r}"
    ended = hostile_images.typed(name, room)
    if ended.code not in (2, 3) or ended.told.count("\n") != 1 or not re.search(f"in/picture: .*({words})", ended.told):
        return f"exit {ended.code}, said {ended.told!r}"
    if max(seconds, ended.processor) > SECONDS or ended.memory > MEMORY:
        return f"took {seconds:.1f} and {ended.processor:.1f} s, {ended.memory / 2**20:.0f} MiB"
    return None
