"""Ways to spoil JSON: text that is none, values at a random place, the header of safetensors (`hostile.Spoil`)."""

import hashlib
import json
import pathlib
import random
import struct
from collections.abc import Callable
from typing import Any

from tests.faults.hostile import Spoil
from tests.faults.hostile_bytes import a_file


def sign(path: pathlib.Path) -> None:
    """Lets a manifest, and the digest of config.json in it, say again that all is well."""
    manifest = path.parent / "manifest.json"
    if "state" not in path.parts or not manifest.is_file():
        return
    raw = manifest.read_bytes()
    first, _, rest = raw.partition(b"\n")
    if path.name == "config.json" and first.startswith(b'{"sha256": "'):
        old = json.loads(raw)["files"]["config.json"].encode()
        rest = rest.replace(old, hashlib.sha256(path.read_bytes()).hexdigest().encode())
    if first.startswith(b'{"sha256": "'):
        manifest.write_bytes(b'{"sha256": "' + hashlib.sha256(rest).hexdigest().encode() + b'",\n' + rest)


def _json(change: Callable[[Any, random.Random], Any] | bytes, title: str) -> Spoil:
    def spoil(root: pathlib.Path, chance: random.Random) -> str:
        path = a_file(root, chance, (".json", "run.lock"))
        raw = path.read_bytes()
        if isinstance(change, bytes):
            text = change
        else:
            plain = json.loads(raw)
            plain.pop("sha256", None) if path.name == "manifest.json" else None
            text = json.dumps(change(plain, chance)).encode()
        if path.name == "manifest.json":
            text = b'{"sha256": "' + b"0" * 64 + b'",\n' + text[1:]
        path.write_bytes(text)
        sign(path)
        return f"{path.name}|state|shard|torch"

    spoil.__name__ = title.replace(" ", "_")
    return spoil


def _places(plain: Any, at: tuple = ()) -> list[tuple]:
    items = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    return [at] * bool(at) + [place for key, value in items for place in _places(value, (*at, key))]


ODD = (
    None,
    True,
    -1,
    0,
    2**62,
    10**39,
    1e308,
    -0.5,
    "",
    "x" * 100_000,
    "\x1b[2J\r\n",
    [],
    {},
    [[[]]],
    "../../x",
    [1] * 5000,
)


def wrong_value(plain: Any, chance: random.Random) -> Any:
    return _with(plain, chance.choice(_places(plain) or [("x",)]), chance.choice(ODD))


def wrong_key(plain: Any, chance: random.Random) -> Any:
    inner, key = _named(plain, chance)
    inner[chance.choice(("\x1b]0;x\x07", "../../outside/kept.txt", "k" * 100_000, "", "\u202e", "a\nb"))] = inner.pop(
        key
    )
    return plain


def no_key(plain: Any, chance: random.Random) -> Any:
    inner, key = _named(plain, chance)
    del inner[key]
    return plain


def _named(plain: Any, chance: random.Random) -> tuple[dict, str]:
    """An object somewhere inside, and one of its keys; one is made where there is none."""
    named = [place for place in _places(plain) if isinstance(place[-1], str)]
    if not named:
        plain["\x1b[2J"] = 1
        return plain, "\x1b[2J"
    place = chance.choice(named)
    return _at(plain, place[:-1]), place[-1]


def _with(plain: Any, place: tuple, value: Any) -> Any:
    _at(plain, place[:-1])[place[-1]] = value
    return plain


def many_keys(plain: Any, chance: random.Random) -> Any:
    return plain | {f"unknown_{i}": i for i in range(100_000)}


def long_list(plain: Any, chance: random.Random) -> Any:
    lists = [place for place in _places(plain) if isinstance(_at(plain, place), list)]
    return _with(plain, chance.choice(lists), [0] * 5_000_000) if lists else plain | {"list": [0] * 5_000_000}


def _at(plain: Any, place: tuple) -> Any:
    for key in place:
        plain = plain[key]
    return plain


JSON = (
    _json(wrong_value, "wrong value"),
    _json(wrong_value, "another wrong value"),
    _json(wrong_key, "wrong key"),
    _json(no_key, "no key"),
    _json(many_keys, "100,000 unknown keys"),
    _json(long_list, "a list of 5,000,000"),
    _json(b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "200,000 deep"),
    _json(b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", "500 deep"),
    _json(b'{"a": ' + b"7" * 400 + b"}", "400 digits"),
    _json(b'{"a": ' + b"7" * 2_000_000 + b"}", "2,000,000 digits"),
    _json(b'{"a": NaN}', "NaN"),
    _json(b'{"a": 1, "a": 2}', "a key twice"),
    _json(b"\xef\xbb\xbf{}", "a byte order mark"),
    _json(b'{"a": "\xff"}', "no UTF-8"),
    _json(b"[]", "a list"),
    _json(b"{" + b'"a": {' * 60 + b"}" * 61, "60 deep"),
    _json(b'{"a": [' + b"0," * 2_000_000 + b'"' + b'\\"' * 2_000_000, "escaped quotes without end"),
    _json(b"{" + b",".join(b'"%d":{}' % i for i in range(1_500_000)) + b"}", "1,500,000 objects"),
)


def _header(text: bytes, title: str) -> Spoil:
    def spoil(root: pathlib.Path, chance: random.Random) -> str:
        path = a_file(root, chance, (".safetensors",))
        path.write_bytes(struct.pack("<Q", len(text)) + text)
        return path.name

    spoil.__name__ = title.replace(" ", "_")
    return spoil


def _tensor(name: str, shape: str, offsets: str = "[0,0]", dtype: str = '"F32"') -> bytes:
    return f'{{"{name}":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}'.encode()


HEADERS = (
    _header(_tensor("x", f"[{'1,' * 5_000_000}1]"), "a shape of 5,000,000 numbers"),
    _header(_tensor("x", f"[{'9223372036854775807,' * 500_000}1]"), "a shape of 500,000 large numbers"),
    _header(_tensor("x", f"[{'9223372036854775807,' * 15}1]"), "a shape of 15 large numbers"),
    _header(_tensor("x\\u001b[2J\\u001b]0;owned\\u0007\\n\\r", "[0]"), "a name that moves the cursor"),
    _header(_tensor("n" * 2_000_000, "[0]"), "a name of 2,000,000 letters"),
    _header(_tensor("x", "[1]", "[0,-4]"), "negative offsets"),
    _header(_tensor("x", "[1e3]"), "a shape of floats"),
    _header(_tensor("x", "[1]", "[0,4]", '"\\u001b[31m"'), "a dtype of a colour"),
    _header(b'{"x":' + b"7" * 400 + b"}", "a number of 400 digits"),
    _header(b" " * 15_000_000, "15 MB of blanks"),
)


def header_of_2_to_63(root: pathlib.Path, chance: random.Random) -> str:
    path = a_file(root, chance, (".safetensors",))
    path.write_bytes(struct.pack("<Q", 2**63 - 1) + path.read_bytes()[8:])
    return path.name
