"""A run's work directory, made hostile, gone on with: what training deletes, replaces and reads."""

import json
import pathlib
import random
import shutil

from tests.faults import hostile
from tests.faults.hostile_bytes import BYTES, INSTEAD, folder_linked_out
from tests.faults.hostile_json import JSON

WORDS = "a hostile work directory is refused in a screen that names the file, or gone on with"
judge = hostile.judge


def _way(title: str, make) -> hostile.Spoil:
    def spoil(root: pathlib.Path, chance: random.Random) -> str:
        make(root / "run", root.parent / "outside")
        return title.split()[0] + "|run"

    spoil.__name__ = title
    return spoil


def _link(name: str, target: str):
    def make(run: pathlib.Path, outside: pathlib.Path) -> None:
        path = run / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(outside / target)

    return make


def _damaged_linked(run: pathlib.Path, outside: pathlib.Path) -> None:
    """The newest step does not verify, and the folder that it is moved to is a link."""
    (run / "checkpoints" / "00000004" / "state" / "manifest.json").write_text("{}")
    _link("checkpoints/damaged", "folder")(run, outside)


def _step_linked(run: pathlib.Path, outside: pathlib.Path) -> None:
    elsewhere = outside.parent / "elsewhere"
    (run / "checkpoints" / "00000004").rename(elsewhere)
    (run / "checkpoints" / "00000004").symlink_to(elsewhere)


def _odd_steps(run: pathlib.Path, outside: pathlib.Path) -> None:
    for name in ("9" * 200, "٣", "00000004 ", "²", "-1", "0"):
        (run / "checkpoints" / name).mkdir()


def _unfinished_linked(run: pathlib.Path, outside: pathlib.Path) -> None:
    (run / "checkpoints" / "x.orbax-checkpoint-tmp").symlink_to(outside / "folder")


def _lock(text: str):
    return lambda run, outside: (run / "run.lock").write_text(text)


def _kept_links(run: pathlib.Path, outside: pathlib.Path) -> None:
    """A retired step with links in it: the links go, not what they lead to."""
    (run / "checkpoints" / "retired").mkdir(exist_ok=True)
    retired = run / "checkpoints" / "retired" / "00000001"
    retired.mkdir()
    (retired / "out").symlink_to(outside / "folder")


def _unfinished_files_linked(run: pathlib.Path, outside: pathlib.Path) -> None:
    """Names that only what was killed leaves, and that the next start deletes."""
    for name, target in (("config.json", "kept.json"), ("metrics.jsonl", "folder")):
        (run / f"{name}.{'0' * 32}.tmp").symlink_to(outside / target)


def _pictures_linked(run: pathlib.Path, outside: pathlib.Path) -> None:
    for name, target in (("loss.png", "kept.json"), ("router_load.png", "kept.txt")):
        (run / name).symlink_to(outside / target)


OWN = tuple(
    _way(title, make)
    for title, make in {
        "retired is a link": _link("checkpoints/retired", "folder"),
        "damaged is a link": _damaged_linked,
        "checkpoints is a link": _link("checkpoints", "folder"),
        "config.json is a link out": _link("config.json", "kept.json"),
        "metrics.jsonl is a link out": _link("metrics.jsonl", "kept.json"),
        "run.lock is a link out": _link("run.lock", "kept.json"),
        "run.lock is a list": _lock("[1, 2]"),
        "run.lock is a text": _lock('"x"'),
        "run.lock of objects": _lock(json.dumps({"pid": {}, "host": [], "start": "\x1b[2J"})),
        "checkpoints of a step that is a link": _step_linked,
        "checkpoints of odd names": _odd_steps,
        "an unfinished save that is a link": _unfinished_linked,
        "a retired step with links": _kept_links,
        "unfinished files that are links": _unfinished_files_linked,
        "tensorboard is a link": _link("tensorboard", "folder"),
        "pictures that are links": _pictures_linked,
    }.items()
)
_REFUSED = ("retired is a link", "damaged is a link", "checkpoints is a link", "run.lock is a link out")
MEMBERS = hostile.members("run", hostile.ways(OWN, INSTEAD, JSON, BYTES, (folder_linked_out,)), _REFUSED)
