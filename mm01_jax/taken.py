"""Folders that are one whole thing, as a run or weights: nothing else is written in them. It imports none of ours."""

import itertools
import os
import pathlib
from typing import NamedTuple

RUN, OURS, PYTORCH, TOKENS = "a run", "a checkpoint", "PyTorch weights", "tokens"
_MARKS = (  # what makes a folder one, all of a row
    (RUN, ("checkpoints", "run.lock")),
    (OURS, ("state/manifest.json",)),
    (TOKENS, ("tokens.json",)),
    (TOKENS, ("tokens_plan.json",)),
)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")  # beside a config.json
_PARTS = {"config.json", "metrics.jsonl", "run.lock", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
_PARTS |= {"sha256.json", "tokens.json", "tokens_plan.json"}
_PART_SUFFIXES = (*_WEIGHTS, ".safetensors.index.json", ".arrayrecord", ".index")
_MOST_NAMES = 100_000  # of a folder that are looked at


class Whole(NamedTuple):
    """A folder, and what it is."""

    folder: str
    what: str

    def __str__(self) -> str:
        return f"{self.folder} is {self.what}" if self.what in (RUN, OURS) else f"{self.folder} holds {self.what}"


def holds(folder: str | os.PathLike) -> str | None:
    """What a folder is, None where it is none of these."""
    for what, names in _MARKS:
        if all(os.path.lexists(os.path.join(folder, name)) for name in names):
            return what
    if os.path.lexists(os.path.join(folder, "config.json")):
        try:
            with os.scandir(folder) as entries:
                if any(entry.name.endswith(_WEIGHTS) for entry in itertools.islice(entries, _MOST_NAMES)):
                    return PYTORCH
        except OSError:  # who reads it says why
            return None
    return None


def above(path: str | os.PathLike) -> Whole | None:
    """The nearest folder above a path that is one, the path itself left out."""
    try:
        parents = pathlib.Path(os.path.realpath(path)).parents
    except (OSError, ValueError):  # a name that cannot be one, which whoever makes it says
        return None
    for folder in parents:
        if what := holds(folder):
            return Whole(str(folder), what)
    return None


def at(path: str | os.PathLike, but: str = "") -> Whole | None:
    """The folder `path` where it is one other than `but`, else the nearest above it."""
    what = holds(path)
    return Whole(os.fspath(path), what) if what not in (None, but) else above(path)


def by_file(path: str | os.PathLike) -> Whole | None:
    """The folder that would be another thing with a file of this name: further files lie in it, beside its parts."""
    place = pathlib.Path(os.path.realpath(path))
    whole = above(place)
    if whole is None or str(place.parent) != whole.folder:
        return whole
    return whole if place.name in _PARTS or place.name.endswith(_PART_SUFFIXES) else None
