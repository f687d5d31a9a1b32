"""A folder of text, made hostile, opened and packed."""

import os
import pathlib
import random

from tests.faults import hostile
from tests.faults.hostile_bytes import BYTES, INSTEAD, folder_linked_out

WORDS = "a hostile folder of text is refused in a screen that names the file; nothing outside is touched"
judge = hostile.judge


def _line(text: bytes, title: str) -> hostile.Spoil:
    def spoil(root: pathlib.Path, chance: random.Random) -> str:
        path = root / "data" / "more" / "b.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        lines.insert(chance.randrange(len(lines)), text + b"\n")
        path.write_bytes(b"".join(lines))
        return "b.jsonl line"

    spoil.__name__ = title
    return spoil


def _named(name: bytes, title: str, content: bytes = b"\xff") -> hostile.Spoil:
    def spoil(root: pathlib.Path, chance: random.Random) -> str:
        with open(os.path.join(os.fsencode(root / "data"), name), "wb") as file:
            file.write(content)
        return "txt"

    spoil.__name__ = title
    return spoil


LINES = (
    _line(b'{"text": "a", "n": NaN}', "NaN in another field"),
    _line(b'{"text": "a", "text": "b"}', "a key twice"),
    _line(b'{"text": "a", "n": ' + b"7" * 400 + b"}", "400 digits"),
    _line(b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "100,000 deep"),
    _line(b'{"\x1b[2J": "a"}', "a key that moves the cursor"),
    _line(b'{"\\u001b[2J\\n": "a"}', "an escaped key that moves the cursor"),
    _line(b'{"text": {"a": [1, 2]}}', "an object for text"),
    _line(b"", "a blank line"),
    _line(b'{"text": "\\ud800"}', "half a surrogate"),
    _line(b'{"n": [' + b"0," * 4_000_000 + b"0]}", "4,000,000 numbers"),
    _line(b'{"text": "' + b"x" * 40_000_000 + b'"}', "a line of 40 MB"),
    _line(b'{"k' + b"k" * 300_000 + b'": 1}', "a key of 300,000 letters"),
    _line(b"x" * 40_000_000 + b"\n" * 3, "lines that are none"),
    _named(b"\x1b[2J\x1b]0;x\x07.txt", "a name that moves the cursor"),
    _named(b"a\nb.txt", "a name of two lines"),
    _named(b"\xff\xfe.txt", "a name that is no UTF-8", b"sound"),
)
# Text may have any bit flipped and any length: only what is none must be refused.
_WAYS = hostile.ways(LINES, INSTEAD, BYTES, (folder_linked_out,))
MEMBERS = hostile.members("data", _WAYS, refused=tuple(hostile.ways(LINES, INSTEAD).keys() - {"folder"}))
