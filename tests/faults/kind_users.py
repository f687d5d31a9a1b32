"""Another user's directories, and what one may not read or write: run as root, the reader is nobody."""

import os
import pathlib
import shutil
from collections.abc import Callable
from typing import NamedTuple

from tests.faults import hostile, readers

WORDS = "a user without rights reads what is open to all, and is refused in a screen that names what is not"
NOBODY = 65534


class Rights(NamedTuple):
    """path: below the reader's directory, "" being itself. mode: its own from now on, None as it is. code: those that
    may come; where it is not 0 the message names the path. What is there and may not be read is bad data.
    """

    reader: str
    path: str
    mode: int | None
    code: tuple[int, ...] = (3,)


MEMBERS = {
    "another user's step": Rights("step", "", None, (0,)),
    "a data file that may not be read": Rights("data", "data/more/b.jsonl", 0),
    "another user's PyTorch directory": Rights("torch", "", None, (0,)),
    "another user's data": Rights("data", "", None, (0,)),
    "another user's tokenizer": Rights("tokenizer", "", None, (0,)),
    "another user's run, gone on with": Rights("run", "run", None, (2,)),  # it is to be written
    "a step that may not be entered": Rights("step", "step", 0),
    "a state that may not be entered": Rights("step", "step/state", 0),
    "a manifest that may not be read": Rights("step", "step/state/manifest.json", 0),
    "a config of a step that may not be read": Rights("step", "step/state/config.json", 0),
    "arrays that may not be entered": Rights("step", "step/state/arrays", 0),
    "a PyTorch directory that may not be entered": Rights("torch", "torch", 0),
    "a PyTorch directory that may not be listed": Rights("torch", "torch", 0o111, (0,)),  # its index names its files
    "a config.json that may not be read": Rights("torch", "torch/config.json", 0),
    "an index that may not be read": Rights("torch", "torch/model.safetensors.index.json", 0),
    "a tokenizer beside weights that may not be read": Rights("torch", "torch/tokenizer.json", 0),
    "a data folder that may not be entered": Rights("data", "data", 0),
    "a data folder that may not be listed": Rights("data", "data", 0o111),
    "a folder inside that may not be listed": Rights("data", "data/more", 0o111),
    "a folder inside that may not be entered": Rights("data", "data/more", 0o444),
    "records that may not be read": Rights("data", "data/c.arrayrecord", 0),
    "a tokenizer that may not be read": Rights("tokenizer", "tokenizer.json", 0),
}


def judge(rights: Rights, room: pathlib.Path) -> str | None:
    shutil.copytree(readers.sound(rights.reader), room / "in")
    for name in ("tmp", "out"):
        (room / name).mkdir()
    for path in (room, *room.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for path in (room / "tmp", room / "out"):
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
    if os.geteuid() and not rights.path.startswith("run"):
        for path in (room / "in").rglob("*"):  # one's own, but not to be written
            path.chmod(path.stat().st_mode & ~0o222)
    if rights.mode is not None:
        (room / "in" / rights.path).chmod(rights.mode)
    elif os.geteuid():
        (room / "in" / rights.path).chmod(0o555)
    ended = readers.server().call("tests.faults.kind_users:read", rights.reader, str(room / "in"), room=room)
    for path in [room / "in" / rights.path, *(room / "in").rglob("*")]:
        path.chmod(0o755)
    return _broken(rights, ended)


def _broken(rights: Rights, ended) -> str | None:
    message = [line for line in ended.complained.splitlines() if not hostile.is_progress(line)]
    if ended.code not in rights.code or ended.hung or "Traceback" in ended.told:
        return f"ends with {ended.code}: {ended.told[-700:]}"
    if ended.code == 0:
        return None
    name = pathlib.Path(rights.path).name
    good = 0 < len(message) <= hostile.LINES and any(name in line and "ermission" in line for line in message)
    return None if good else f"says {message}"


def read(reader: str, path: str) -> int:
    """A reader, without the rights of root."""
    act: Callable[[str], int] = getattr(readers, reader)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    return act(path)
