"""Corpora of many documents, and of a long one: counted with progress, in little memory, and read where they are."""

import pathlib
import re
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.faults import readers

WORDS = "a million documents or one of 5 GB are opened with progress, in little memory, and read at their ends"
EVERY = 6
LENGTH = 512  # of a row
BLOCK = 4096  # bytes of a line of the long text, which begins with its number
MILLION, GIGABYTES = 10**6, 10**9
MOST_SILENCE = 30.0  # seconds without a line of progress, which comes every five where the machine does nothing else
MEMORY = 200 << 20
OF_A_FILE = 1000  # bytes more for every file, whose name and place are known


class Size(NamedTuple):
    """make: writes `count` documents, or bytes of one, into a folder."""

    make: Callable[[pathlib.Path, int], None]
    count: int
    files: int = 1


def _files(folder: pathlib.Path, count: int) -> None:
    for number in range(count):
        if number % 1000 == 0:
            inner = folder / f"{number // 1000:04d}"
            inner.mkdir()
        (inner / f"{number:07d}.txt").write_text(f"document {number}\n")


def _lines(folder: pathlib.Path, count: int) -> None:
    with open(folder / "a.jsonl", "w") as file:
        file.writelines(f'{{"text": "document {number}\\n"}}\n' for number in range(count))


def _records(folder: pathlib.Path, count: int) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(folder / "a.arrayrecord"), "group_size:256")
    for number in range(count):
        writer.write(f"document {number}\n".encode())
    writer.close()


def _long(folder: pathlib.Path, count: int) -> None:
    rest = "x" * (BLOCK - 17)
    with open(folder / "a.txt", "w") as file:
        file.writelines(f"{number:015d} {rest}\n" for number in range(count // BLOCK))


MEMBERS = {
    "5,000 small files": Size(_files, 5000, 5000),
    "a million small files": Size(_files, MILLION, MILLION),
    "a million lines": Size(_lines, MILLION),
    "a million records": Size(_records, MILLION),
    "a text of 5 GB": Size(_long, 5 * GIGABYTES),
}


def judge(size: Size, room: pathlib.Path) -> str | None:
    (room / "in").mkdir()
    size.make(room / "in", size.count)
    function = "tests.faults.kind_sizes:" + ("read_long" if size.make is _long else "read_many")
    ended = readers.server().call(function, str(room / "in"), str(size.count), room=room, seconds=3000.0)
    allowed = MEMORY + OF_A_FILE * size.files
    if ended.code or ended.hung or ended.complained:
        return f"ends with {ended.code}: {ended.told[-700:]}"
    return f"takes {ended.memory >> 20} MiB" if ended.memory > allowed else None


def _opened(folder: str):
    """A dataset without held-out documents, and the longest time that nothing was said."""
    from mm01_jax.config import DataConfig
    from mm01_jax.data.dataset import open_dataset

    said = [time.monotonic()]
    found = open_dataset(
        DataConfig(source=folder, held_out=0.0), LENGTH, 257, log=lambda line: said.append(time.monotonic())
    )
    said.append(time.monotonic())
    return found, max(after - before for before, after in zip(said, said[1:], strict=False))


def _text(row) -> str:
    return bytes(token for token in row["tokens"].tolist() if token < 256).decode()


def read_many(folder: str, count: str) -> int:
    """Every document is there, and rows at both ends of the first epoch are whole documents."""
    found, silence = _opened(folder)
    rows = found.train.tokens_per_epoch // LENGTH
    texts = [_text(found.train.row(index)) for index in (0, rows // 2, rows - 1, rows, 10**9)]
    numbers = [int(number) for text in texts for number in re.findall(r"document (\d+)\n", text)]
    whole = all(re.fullmatch(r"[a-z0-9 ]*\n(document \d+\n)+[a-z0-9 ]*", text) for text in texts)
    print(f"{len(found.corpus)} documents, {numbers[:3]}, {whole}, {silence:.1f} s without a word")
    good = len(found.corpus) == int(count) and whole and max(numbers) < int(count)
    return 0 if good and silence < MOST_SILENCE else 1


def read_long(folder: str, count: str) -> int:
    """Rows at the beginning, beyond 2^32 and at the end are what stands there."""
    found, silence = _opened(folder)
    size = int(count) // BLOCK * BLOCK
    good = found.corpus.size_D.tolist() == [size]
    for at in (0, 2**31 // LENGTH, 2**32 // LENGTH, size // LENGTH - BLOCK // LENGTH):
        at = at * LENGTH // BLOCK * BLOCK // LENGTH  # where a line begins
        good &= _text(found.train.row(at)).startswith(f"{at * LENGTH // BLOCK:015d} x")
    print(f"{size} bytes, {good}, {silence:.1f} s without a word")
    return 0 if good and silence < MOST_SILENCE else 1
