"""What a flag's value may not be though it is of its kind: a number that is none, a file that cannot lie there, or that
does not; and which path was meant."""

import contextlib
import difflib
import errno
import itertools
import math
import os
import pathlib
import stat
from collections.abc import Iterable

from mm01_jax import taken

MOST_TOKENS = 10_240_000  # of an answer: positions that the released model has (max_position_embeddings)
MOST_NAME = 4096  # characters of a name, which may be a path
_FILE = "a file in a folder that exists, new or to be replaced"
_MISSING = (None, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)  # None: a NUL in a name
_MOST_BESIDE = 1000  # names of a folder that are looked at for a near one


def allowed_instead(value: object, *, writes: bool = False, reads: str = "") -> str | None:
    """What is allowed where a value is not; None where it is.

    Args:
      writes: the value names a file that the command is to write, minutes or hours later.
      reads: the value names something to read, and this is what; whether it is sound is for its reader to say.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if not isinstance(value, str):
        return None
    if reads:
        return _unreadable(value, reads)
    if not writes:
        return None
    place = pathlib.Path(value)
    try:
        folder = place.absolute().parent
        if not folder.is_dir() or (place.exists() and not place.is_file()):  # a FIFO would wait for a reader
            return _FILE
    except (OSError, ValueError):  # a name that is too long, or with a NUL
        return _FILE
    if whole := taken.by_file(value):
        return f"a file elsewhere, or of another name: {whole}"
    return None if os.access(folder, os.W_OK | os.X_OK) else "a file in a folder that may be written in"


def _unreadable(path: str, reads: str) -> str | None:
    """What is allowed where a path is not; None where it is, and where its reader has to say why it is not read.

    What no look inside is needed for is said here, before a command imports what takes seconds.
    """
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) not in _MISSING:  # another user's, or of a disk
            return None
        leads = "\0" not in path and len(path) <= MOST_NAME and os.path.islink(path)
        return f"{reads} that exists{', which a link leads to' if leads else ''}"
    if not is_folder and reads in ("a folder", "a directory"):
        return f"{reads}, which this is not"
    return None


def similar(word: str, names: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """The names most like a word, the nearest first; none of a text that is too long for a name."""
    return difflib.get_close_matches(word, names, n=n, cutoff=cutoff) if len(word) <= MOST_NAME else []


def nearest_path(path: object) -> str | None:
    """What exists and is most like a path that does not, whose first missing part is taken for a slip."""
    place = pathlib.Path(str(path)[: MOST_NAME + 1])  # a longer one exists nowhere
    with contextlib.suppress(OSError, ValueError):
        missing = next((part for part in (*reversed(place.parents), place) if not part.exists()), None)
        if missing is None:
            return None
        with os.scandir(missing.parent) as entries:
            names = {entry.name.lower(): entry.name for entry in itertools.islice(entries, _MOST_BESIDE)}
        if names.get(missing.name.lower()) == missing.name:  # a link that leads nowhere
            return None
        near = similar(missing.name.lower(), names)
        if near:
            meant = missing.parent / names[near[0]]
            whole = meant / place.relative_to(missing)
            return str(whole if whole.exists() else meant)
    return None


def nearest_words(path: object) -> str:
    """`nearest_path` for the end of a message."""
    near = nearest_path(path)
    return f"; nearest: {near}" if near else ""
