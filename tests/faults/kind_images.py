"""Images that are none, of `hostile_images.py`: refused in one line that names them, within half a second."""

import pathlib
import re

from tests.faults import hostile_images

WORDS = "an image that is none is refused in one line that names it, within half a second"
MEMBERS = {name: name for name in hostile_images.CASES}


def judge(name: str, room: pathlib.Path) -> str | None:
    said, seconds = hostile_images.refusal(name, room)
    if not said.startswith("picture: ") or "\n" in said or not re.search(hostile_images.CASES[name][1], said):
        return f"said {said!r}"
    return f"took {seconds:.1f} s" if seconds > 0.5 else None
