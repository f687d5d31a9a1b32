"""A disk that is full or broken below one folder, and a clock that jumps, made for a process by `disk.c` and `clock.c`.

Needs a C compiler.
"""

import errno
import functools
import os
import pathlib
import shutil
import subprocess
import tempfile

HERE = pathlib.Path(__file__).parent


def compiler() -> str | None:
    """Where one is."""
    return shutil.which("cc") or shutil.which("gcc")


@functools.cache
def library(name: str) -> str:
    """The compiled `name`.c; it lies where the machine's temporary files do, as long as they do."""
    source = HERE / f"{name}.c"
    built = pathlib.Path(tempfile.gettempdir()) / f"mm01-faulty-{name}-{os.getuid()}-{int(source.stat().st_mtime)}.so"
    if not built.exists():
        half = built.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler(), "-shared", "-fPIC", "-O1", "-o", half, source, "-ldl"], check=True)
        half.rename(built)
    return str(built)


def environment(folder: pathlib.Path, after: int, *, error: int = errno.ENOSPC, of: str = "write") -> dict[str, str]:
    """What a process needs so that below `folder` everything fails with `error` after so many bytes."""
    return {
        "LD_PRELOAD": library("disk"),
        "FAULT_FOLDER": str(folder.resolve()),
        "FAULT_BYTES": str(after),
        "FAULT_ERRNO": str(error),
        "FAULT_OF": of,
    }


def jumping(after: float, seconds: float) -> dict[str, str]:
    """What a process needs so that its clock says so many seconds more, or less, from some seconds after its start."""
    return {"LD_PRELOAD": library("clock"), "FAULT_AFTER": str(after), "FAULT_JUMP": str(int(seconds))}
