"""A corpus that changes while a run reads it: what was looked at is read on, or the run ends and names the file."""

import os
import pathlib
import re
import shutil
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.faults import hostile, readers

WORDS = "a corpus that changes while it is read gives the rows that it had, or is refused in a line that names the file"
ROWS, LENGTH = 60, 64


class Change(NamedTuple):
    """act: what becomes of one file of the folder, by then or, `during`, while it is opened. refused: it must be."""

    file: str
    act: Callable[[pathlib.Path], object]
    refused: bool
    during: bool = False


def _again(change: Callable[[bytes], bytes]) -> Callable[[pathlib.Path], object]:
    """Other bytes in the same file."""
    return lambda path: path.write_bytes(change(path.read_bytes()))


def _replaced(by: Callable[[pathlib.Path], object]) -> Callable[[pathlib.Path], object]:
    """Something else in its place."""

    def act(path: pathlib.Path) -> None:
        path.unlink()
        by(path)

    return act


def _copied(path: pathlib.Path) -> None:
    other = path.with_name(".copy")
    shutil.copyfile(path, other)
    other.rename(path)


def _grow(path: pathlib.Path) -> None:
    for _ in range(500):
        with open(path, "ab") as file:
            file.write(b"and more of it\n")
        time.sleep(0.001)


def _flip_and_back(path: pathlib.Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes(reversed(content)))
    path.write_bytes(content)


def _swap_lines(raw: bytes) -> bytes:
    lines = raw.splitlines(keepends=True)
    lines[3], lines[4] = lines[4], lines[3]
    return b"".join(lines)


A, B, C = "a.txt", "more/b.jsonl", "c.arrayrecord"
MEMBERS = {
    "a text is another of the same length": Change(A, _again(lambda raw: raw.replace(b"x", b"y")), True),
    "a text is longer": Change(A, _again(lambda raw: raw + b"more\n"), True),
    "a text is shorter": Change(A, _again(lambda raw: raw[:-7]), True),
    "a text is empty": Change(A, _again(lambda raw: b""), True),
    "a text is no UTF-8": Change(A, _again(lambda raw: b"\xff" * len(raw)), True),
    "a text is gone": Change(A, pathlib.Path.unlink, True),
    "a text is a FIFO": Change(A, _replaced(os.mkfifo), True),
    "a text is a folder": Change(A, _replaced(pathlib.Path.mkdir), True),
    "a text is zeros without end": Change(A, _replaced(lambda path: path.symlink_to("/dev/zero")), True),
    "a text grows to 30 GB": Change(A, lambda path: os.truncate(path, hostile.HOLE), True),
    "a text has another time": Change(A, lambda path: os.utime(path, (1, 1)), False),
    "a text is a copy of itself": Change(A, _copied, False),
    "a text is another and back": Change(A, _flip_and_back, False),
    "a text grows while it is looked at": Change(A, _grow, False, during=True),
    "a file comes": Change("new.txt", lambda path: path.write_text("new"), False),
    "a line is another of the same length": Change(B, _again(lambda raw: raw.replace(b"line 7", b"line X")), True),
    "a line is longer": Change(B, _again(lambda raw: raw.replace(b"line 7", b"line 7777")), True),
    "two lines are swapped": Change(B, _again(_swap_lines), True),
    "a line comes": Change(B, _again(lambda raw: raw + b'{"text": "new"}\n'), False),
    "the lines are gone": Change(B, pathlib.Path.unlink, True),
    "the lines are cut": Change(B, _again(lambda raw: raw[: len(raw) // 2]), True),
    "lines grow while they are looked at": Change(B, _grow, False, during=True),
    "records are others of the same length": Change(C, lambda path: _records(path, "recorD {}"), True),
    "records are cut": Change(C, lambda path: os.truncate(path, 1), True),
    "records are a copy of themselves": Change(C, _copied, False),
}


def _records(path: pathlib.Path, text: str) -> None:
    """Other records in the same file, which a reader may have open."""
    from array_record.python.array_record_module import ArrayRecordWriter

    other = path.with_name(".other")
    writer = ArrayRecordWriter(str(other), "group_size:1")
    for number in range(20):
        writer.write(text.format(number).encode())
    writer.close()
    path.write_bytes(other.read_bytes())
    other.unlink()


def judge(change: Change, room: pathlib.Path) -> str | None:
    shutil.copytree(readers.sound("data"), room / "in")
    (number,) = (str(n) for n, other in enumerate(MEMBERS.values()) if other is change)
    ended = readers.server().call("tests.faults.kind_changing:read", str(room / "in" / "data"), number, room=room)
    message = [line for line in ended.complained.splitlines() if line.strip()]
    if ended.hung or ended.processor > hostile.PROCESSOR or ended.memory > hostile.MEMORY or ended.outside:
        return f"{ended}"
    if ended.code == 0:
        same = "the same rows" in ended.said
        return None if same and not change.refused else f"is {'taken' if same else 'read as another'}: {ended.said}"
    named = len(message) == 1 and re.search(re.escape(pathlib.Path(change.file).name), message[0])
    good = ended.code == 3 and named and (change.refused or change.during)
    return None if good else f"ends with {ended.code}: {ended.complained[-700:]}"


def read(folder: str, number: str) -> int:
    """Opens the corpus twice; the one reads it before the change, the other after it."""
    import numpy as np

    from mm01_jax import command
    from mm01_jax.config import DataConfig
    from mm01_jax.data.dataset import open_dataset

    change = list(MEMBERS.values())[int(number)]
    path = pathlib.Path(folder) / change.file

    def open_rows():
        return open_dataset(DataConfig(source=folder, held_out=0.0), LENGTH, 320, log=lambda line: None).train

    def compare(argv) -> None:
        del argv
        before = [open_rows().row(index) for index in range(ROWS)]
        work = threading.Thread(target=change.act, args=(path,))
        if change.during:
            work.start()
        rows = open_rows()
        if not change.during:
            work.start()
        work.join()
        for index, row in enumerate(before):
            now = rows.row(index)
            if not change.during and not all(np.array_equal(now[name], row[name]) for name in row):
                print(f"row {index} is another")
                return
        print("the same rows")

    return command.run(compare, [], name="mm01-train")
