"""Rows of results: one number each, with all that it takes to compare it, in JSON files that tables are made from.

`what` is "subject: quantity", such as "lightning_attention 1x32768x64: forward". A quantity that was taken several
times has as many rows. A file is a JSON list with one row on each line.
"""

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
import re
import shlex
import subprocess
import sys

PACKAGES = ("jax", "jaxlib", "numpy")
ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One number (or a word, where that is the result) and where it comes from.

    floor: the least that `value` could be on this device, in the same unit. peer: whose number it is, None for ours.
    commit: of the code that was measured; None where nobody wrote it down, "+" behind it where files had changes.
    date: year-month-day of the run, or of that commit where the run's was not written down.
    """

    what: str
    value: float | int | str
    unit: str = ""
    floor: float | None = None
    peer: str | None = None
    device: str
    versions: dict[str, str]
    commit: str | None
    command: str
    date: str | None = None

    def __post_init__(self):
        if ": " not in self.what:
            raise ValueError(f"what={self.what!r} must be 'subject: quantity'")

    @property
    def subject(self) -> str:
        return self.what.rpartition(": ")[0]

    @property
    def quantity(self) -> str:
        return self.what.rpartition(": ")[2]

    @property
    def key(self) -> tuple[str, str]:
        """Rows with the same key are measured together."""
        return self.subject, self.device


def read(path: pathlib.Path | str) -> list[Row]:
    """Rows of a file. ValueError that names the file and the row where a field is missing or unknown."""
    rows = []
    for number, plain in enumerate(json.loads(pathlib.Path(path).read_text())):
        try:
            rows.append(Row(**plain))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: row {number}: {error}") from error
    return rows


def write(path: pathlib.Path | str, rows: list[Row]) -> None:
    """Rows to a file, one a line."""
    lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False) for row in rows]
    pathlib.Path(path).write_text("[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n")


def add_json(parser: argparse.ArgumentParser) -> None:
    """The flag that every bench has."""
    parser.add_argument("--json", metavar="FILE", type=_file, help="rows of results; those of other subjects stay")


def _file(text: str) -> pathlib.Path:
    path = pathlib.Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no directory {path.parent}")
    if path.exists():
        try:
            read(path)
        except (OSError, ValueError) as error:
            raise argparse.ArgumentTypeError(f"{text} holds no rows of results: {error}") from error
    return path


class Report:
    """Collects the rows of one run of a command; with a path, the file is rewritten whenever a row comes.

    A file that is already there keeps its rows, so that one file can be made by several commands; every row says which.
    But of a subject that is measured again on a device all go: what stands in one line was seen in one run. A label is
    added to every subject; packages are those whose versions count beside jax's, where they are installed;
    root is the checkout that is measured.
    """

    def __init__(
        self,
        path: pathlib.Path | str | None,
        module: str,
        argv: list[str] | None = None,
        *,
        label: str = "",
        packages: tuple[str, ...] = (),
        root: pathlib.Path = ROOT,
    ):
        typed = shlex.join(["python", "-m", module, *(sys.argv[1:] if argv is None else argv)])
        self.path, self.command = path, re.sub(r" --json[= ]\S+", "", typed)
        self.before = read(path) if path and pathlib.Path(path).exists() else []
        self.rows: list[Row] = []
        self.label = f", {label}" if label else ""
        self._origin = {"versions": versions(*packages), "commit": commit(root), "command": self.command}
        self._origin["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()

    def add(self, what: str, value, unit: str = "", *, device: str, floor=None, peer=None, command=None) -> Row:
        """One more row of this run, or of another `command` whose file it reads."""
        subject, _, quantity = what.rpartition(": ")
        what = f"{subject}{self.label}: {quantity}"
        row = Row(what=what, value=value, unit=unit, floor=floor, peer=peer, device=device, **self._origin)
        row = row if command is None else dataclasses.replace(row, command=command)
        self.rows.append(row)
        if self.path:
            write(self.path, self.merged())
        return row

    def merged(self) -> list[Row]:
        """All rows; what was measured again stands where it stood before."""
        groups: dict[tuple, list[Row]] = {}
        for row in self.before:
            groups.setdefault(row.key, []).append(row)
        new: dict[tuple, list[Row]] = {}
        for row in self.rows:
            new.setdefault(row.key, []).append(row)
        return [row for rows in (groups | new).values() for row in rows]


def versions(*more: str) -> dict[str, str]:
    """Of the packages that make a difference, those that are installed."""
    found = {}
    for name in (*PACKAGES, *more):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit(root: pathlib.Path = ROOT) -> str | None:
    """The commit of a checkout; None outside a git repository."""
    try:
        found = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], cwd=root, capture_output=True, text=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=root, capture_output=True)
    except OSError:
        return None
    return found.stdout.strip() + "+" * (changed.returncode == 1) if found.returncode == 0 else None


def processor() -> str:
    """The processor's name, for what runs on it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else "CPU"


def device() -> str:
    """jax's devices: their number, where there are several, and kind; on a CPU the processor's name."""
    import jax

    found = jax.devices()
    if found[0].platform == "cpu":
        return processor()
    return (f"{len(found)} x " if len(found) > 1 else "") + found[0].device_kind


def say_where() -> None:
    """On stderr, where no accelerator is: whoever starts a bench of one there should know before it takes hours."""
    import jax

    if jax.default_backend() == "cpu":
        print(f"no GPU or TPU here: timed on {processor()}, which takes long", file=sys.stderr, flush=True)
