"""What a flag's value may not be though it is of its kind: a number that is none, a file that cannot lie there."""

import math
import os
import pathlib

_FILE = "a file in a folder that exists, new or to be replaced"


def allowed_instead(value: object, writes: bool) -> str | None:
    """What is allowed where a value is not; None where it is.

    Args:
      writes: the value names a file that the command is to write, minutes or hours later.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if not writes or not isinstance(value, str):
        return None
    place = pathlib.Path(value)
    try:
        folder = place.absolute().parent
        if not folder.is_dir() or (place.exists() and not place.is_file()):  # a FIFO would wait for a reader
            return _FILE
    except (OSError, ValueError):  # a name that is too long, or with a NUL
        return _FILE
    return None if os.access(folder, os.W_OK | os.X_OK) else "a file in a folder that may be written in"
