"""Directories made hostile: a sound one (`readers.py`), spoiled in one way, read in a process of its own, judged.

    no traceback, no hang, at most 200 MiB more memory, nothing written or deleted outside, a message of at most
    20 printable lines that names what is wrong

Every way is a function of (directory, random) that returns words which the message may name the thing by.
"""

import hashlib
import json
import os
import pathlib
import random
import shutil
import socket
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.faults import readers

SECONDS = 60.0  # after which it hangs, on a machine that does other things as well
PROCESSOR = 5.0  # seconds of it that a reader may take
MEMORY = 200 << 20
LINES = 20
HOLE = 30_000_000_000  # bytes of a sparse file
Spoil = Callable[[pathlib.Path, random.Random], str]


class Member(NamedTuple):
    """A way to spoil what `reader` reads, the seed of its choices, and whether it must be refused."""

    reader: str
    spoil: Spoil
    seed: int
    refused: bool = False


def judge(member: Member, room: pathlib.Path) -> str | None:
    """What of the promise above is broken; None where all of it is kept."""
    shutil.copytree(readers.sound(member.reader), room / "in", symlinks=True)
    outside = room / "outside"
    outside.mkdir()
    for name in ("kept.txt", "kept.json"):
        (outside / name).write_text("{}")
    (outside / "folder").mkdir()
    (outside / "folder" / "kept").write_text("x")
    before = _contents(outside)
    thing = member.spoil(room / "in", random.Random(f"{member.reader} {member.seed}"))
    ended = readers.server().call(f"tests.faults.readers:{member.reader}", str(room / "in"), room=room, seconds=SECONDS)
    return _broken(member, ended, thing, _contents(outside) != before)


def _broken(member: Member, ended, thing: str, changed: bool) -> str | None:
    message = [line for line in ended.complained.splitlines() if not _is_progress(line)]
    if ended.hung:
        return f"hangs: {ended.said[-300:]}"
    if ended.code < 0 or "Traceback" in ended.complained or ended.code == 1:
        return f"ends with {ended.code}: {ended.complained[-700:]}"
    if changed or ended.outside:
        return f"writes outside: {ended.outside[:3]}"
    if ended.memory > MEMORY:
        return f"takes {ended.memory >> 20} MiB: {message[-1:]}"
    if ended.processor > PROCESSOR:
        return f"takes {ended.processor:.1f} s of processor time: {message[-1:]}"
    if ended.code == 0:
        return f"is taken: {ended.said[-200:]}" if member.refused else None
    if not 0 < len(message) <= LINES or len(ended.complained) > 8000:
        return f"says {len(message)} lines, {len(ended.complained)} characters: {message[:2]}"
    if not all(line.isprintable() for line in message):
        return f"says what a terminal obeys: {message[:2]!r}"
    names = [name for name in thing.split("|") if name]
    if not any(name in line for name in names for line in message):
        return f"does not name {thing}: {message[:3]}"
    return None


def _is_progress(line: str) -> bool:
    return line.startswith(("from-torch ", "check ", "step ", "thread '")) or not line.strip()


def _contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Which file.


def _files(root: pathlib.Path, chance: random.Random, suffixes: tuple[str, ...] = ()) -> pathlib.Path:
    """A regular file; arrays' blocks are many, so that each kind of file is as likely as another."""
    found = sorted(p for p in root.rglob("*") if p.is_file() and not p.is_symlink() and "text.jsonl" not in p.name)
    found = [p for p in found if not suffixes or p.suffix in suffixes or p.name in suffixes]
    kinds: dict[str, list[pathlib.Path]] = {}
    for path in found:
        kinds.setdefault("block" if "arrays" in path.parts and path.name != "zarr.json" else path.name, []).append(path)
    return chance.choice(kinds[chance.choice(sorted(kinds))])


def _name(path: pathlib.Path) -> str:
    """A file's own name, or of an array's block the leaf's."""
    parts = path.parts
    if "arrays" in parts:
        leaf = parts[parts.index("arrays") + 1]
        return f"{leaf}|{leaf.replace('.', '/')}|arrays"
    return path.name


# Bytes.


def flip(root: pathlib.Path, chance: random.Random) -> str:
    path = _files(root, chance)
    raw = bytearray(path.read_bytes() or b"x")
    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    path.write_bytes(raw)
    return f"{_name(path)}|{root.name}|state"


def truncate(root: pathlib.Path, chance: random.Random) -> str:
    path = _files(root, chance)
    path.write_bytes(path.read_bytes()[: chance.randrange(max(1, path.stat().st_size))])
    return f"{_name(path)}|state"


def zero(root: pathlib.Path, chance: random.Random) -> str:
    path = _files(root, chance)
    raw = bytearray(path.read_bytes())
    at = chance.randrange(max(1, len(raw)))
    raw[at : at + 64] = bytes(len(raw[at : at + 64]))
    path.write_bytes(raw)
    return f"{_name(path)}|state"


def noise(root: pathlib.Path, chance: random.Random) -> str:
    path = _files(root, chance)
    path.write_bytes(chance.randbytes(chance.choice((0, 1, 7, 300, 70_000))))
    return f"{_name(path)}|state"


def swap(root: pathlib.Path, chance: random.Random) -> str:
    one, two = _files(root, chance), _files(root, chance)
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    return f"{_name(one)}|{_name(two)}|state"


def grown(root: pathlib.Path, chance: random.Random) -> str:
    """30 GB of holes behind what was there."""
    path = _files(root, chance)
    os.truncate(path, HOLE)
    return f"{_name(path)}|state"


def missing(root: pathlib.Path, chance: random.Random) -> str:
    path = _files(root, chance)
    path.unlink()
    return f"{_name(path)}|state|{path.parent.name}|no .safetensors file"


# What is no file.


def _instead(make: Callable[[pathlib.Path, pathlib.Path], Any]) -> Spoil:
    def spoil(root: pathlib.Path, chance: random.Random) -> str:
        path = _files(root, chance)
        path.unlink()
        make(path, root.parent / "outside")
        return f"{_name(path)}|state|{path.name}"

    spoil.__name__ = make.__name__
    return spoil


def fifo(path: pathlib.Path, outside: pathlib.Path) -> None:
    os.mkfifo(path)


def folder(path: pathlib.Path, outside: pathlib.Path) -> None:
    path.mkdir()


def zeros_without_end(path: pathlib.Path, outside: pathlib.Path) -> None:
    path.symlink_to("/dev/zero")


def terminal(path: pathlib.Path, outside: pathlib.Path) -> None:
    path.symlink_to("/dev/tty")


def link_to_itself(path: pathlib.Path, outside: pathlib.Path) -> None:
    path.symlink_to(path.name)


def link_out(path: pathlib.Path, outside: pathlib.Path) -> None:
    path.symlink_to(outside / ("kept.json" if path.suffix == ".json" else "kept.txt"))


def link_to_nothing(path: pathlib.Path, outside: pathlib.Path) -> None:
    path.symlink_to(outside / "not there")


def listening(path: pathlib.Path, outside: pathlib.Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has at most 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def folder_linked_out(root: pathlib.Path, chance: random.Random) -> str:
    """A folder of it is a link to a folder elsewhere that holds the same."""
    folders = sorted(p for p in root.rglob("*") if p.is_dir() and p.name in FOLDERS)
    chosen = chance.choice(folders or [root / root.iterdir().__next__().name])
    elsewhere = root.parent / "elsewhere"
    chosen.rename(elsewhere)
    chosen.symlink_to(elsewhere)
    return f"{chosen.name}|state|checkpoints"


FOLDERS = ("state", "arrays", "checkpoints", "more", "00000004")
INSTEAD = tuple(map(_instead, (fifo, folder, zeros_without_end, terminal, link_to_itself, link_out, listening)))
BYTES = (flip, truncate, zero, noise, swap, grown, missing)

# JSON: text that is none, and values at a random place of it.


def _sign(path: pathlib.Path) -> None:
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
        path = _files(root, chance, (".json", "run.lock"))
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
        _sign(path)
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
    return _with(plain, chance.choice(_places(plain)), chance.choice(ODD))


def wrong_key(plain: Any, chance: random.Random) -> Any:
    place = chance.choice([place for place in _places(plain) if isinstance(place[-1], str)])
    inner = plain
    for key in place[:-1]:
        inner = inner[key]
    inner[chance.choice(("\x1b]0;x\x07", "../../outside/kept.txt", "k" * 100_000, "", "\u202e", "a\nb"))] = inner.pop(
        place[-1]
    )
    return plain


def no_key(plain: Any, chance: random.Random) -> Any:
    place = chance.choice([place for place in _places(plain) if isinstance(place[-1], str)])
    inner = plain
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    return plain


def _with(plain: Any, place: tuple, value: Any) -> Any:
    inner = plain
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
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
    _json(b"{" + b",".join(b'"%d":{}' % i for i in range(1_500_000)) + b"}", "1,500,000 objects"),
)

# A header of safetensors.


def _header(text: bytes, title: str) -> Spoil:
    def spoil(root: pathlib.Path, chance: random.Random) -> str:
        path = _files(root, chance, (".safetensors",))
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
    path = _files(root, chance, (".safetensors",))
    path.write_bytes(struct.pack("<Q", 2**63 - 1) + path.read_bytes()[8:])
    return path.name


def members(reader: str, ways: dict[str, Spoil], refused: tuple[str, ...] = (), count: int = 80) -> dict[str, Member]:
    """`count` members: every way in turn, each time with other choices."""
    found: dict[str, Member] = {}
    for number in range(count):
        title = list(ways)[number % len(ways)]
        name = title.replace("_", " ")
        again = number // len(ways)
        member = Member(reader, ways[title], number, title in refused)
        found[f"{name} ({again + 1})" if again else name] = member
    return found


def ways(*groups: tuple[Spoil, ...]) -> dict[str, Spoil]:
    return {spoil.__name__: spoil for group in groups for spoil in group}
