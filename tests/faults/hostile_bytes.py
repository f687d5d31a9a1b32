"""Ways to spoil the bytes of a file, or to put what is no file in its place (`hostile.Spoil`)."""

import os
import pathlib
import random
import socket
from collections.abc import Callable
from typing import Any

from tests.faults.hostile import HOLE, Spoil


def a_file(root: pathlib.Path, chance: random.Random, suffixes: tuple[str, ...] = ()) -> pathlib.Path:
    """A regular file; arrays' blocks are many, so that each kind of file is as likely as another."""
    found = sorted(p for p in root.rglob("*") if p.is_file() and p.name not in ("text.jsonl", "source"))
    found = [p for p in found if not suffixes or p.suffix in suffixes or p.name in suffixes]
    kinds: dict[str, list[pathlib.Path]] = {}
    for path in found:
        kinds.setdefault("block" if "arrays" in path.parts and path.name != "zarr.json" else path.name, []).append(path)
    return chance.choice(kinds[chance.choice(sorted(kinds))])


def name_of(path: pathlib.Path) -> str:
    """A file's own name, or of an array's block the leaf's."""
    parts = path.parts
    if "arrays" in parts:
        leaf = parts[parts.index("arrays") + 1]
        return f"{leaf}|{leaf.replace('.', '/')}|arrays"
    return path.name


# Bytes.


def flip(root: pathlib.Path, chance: random.Random) -> str:
    path = a_file(root, chance)
    raw = bytearray(path.read_bytes() or b"x")
    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    path.write_bytes(raw)
    return f"{name_of(path)}|{root.name}|state"


def truncate(root: pathlib.Path, chance: random.Random) -> str:
    path = a_file(root, chance)
    path.write_bytes(path.read_bytes()[: chance.randrange(max(1, path.stat().st_size))])
    return f"{name_of(path)}|state"


def zero(root: pathlib.Path, chance: random.Random) -> str:
    path = a_file(root, chance)
    raw = bytearray(path.read_bytes())
    at = chance.randrange(max(1, len(raw)))
    raw[at : at + 64] = bytes(len(raw[at : at + 64]))
    path.write_bytes(raw)
    return f"{name_of(path)}|state"


def noise(root: pathlib.Path, chance: random.Random) -> str:
    path = a_file(root, chance)
    path.write_bytes(chance.randbytes(chance.choice((0, 1, 7, 300, 70_000))))
    return f"{name_of(path)}|state"


def swap(root: pathlib.Path, chance: random.Random) -> str:
    one, two = a_file(root, chance), a_file(root, chance)
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    return f"{name_of(one)}|{name_of(two)}|state"


def grown(root: pathlib.Path, chance: random.Random) -> str:
    """30 GB of holes behind what was there."""
    path = a_file(root, chance)
    os.truncate(path, HOLE)
    return f"{name_of(path)}|state"


def missing(root: pathlib.Path, chance: random.Random) -> str:
    path = a_file(root, chance)
    path.unlink()
    return f"{name_of(path)}|state|{path.parent.name}|no .safetensors file"


# What is no file.


def _instead(make: Callable[[pathlib.Path, pathlib.Path], Any]) -> Spoil:
    def spoil(root: pathlib.Path, chance: random.Random) -> str:
        path = a_file(root, chance)
        path.unlink()
        make(path, root.parent / "outside")
        return f"{name_of(path)}|state|{path.name}"

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
