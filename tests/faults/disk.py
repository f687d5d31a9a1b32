"""A disk that is full or broken below one folder, made for a process by `disk.c`; needs a C compiler."""

import errno
import functools
import os
import pathlib
import shutil
import subprocess
import tempfile

SOURCE = pathlib.Path(__file__).with_suffix(".c")


def compiler() -> str | None:
    """Where one is."""
    return shutil.which("cc") or shutil.which("gcc")


@functools.cache
def library() -> str:
    """The compiled shim; it lies in a folder of its own as long as the machine's temporary files do."""
    built = pathlib.Path(tempfile.gettempdir()) / f"mm01-faulty-disk-{os.getuid()}-{int(SOURCE.stat().st_mtime)}.so"
    if not built.exists():
        half = built.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler(), "-shared", "-fPIC", "-O1", "-o", half, SOURCE, "-ldl"], check=True)
        half.rename(built)
    return str(built)


def environment(folder: pathlib.Path, after: int, *, error: int = errno.ENOSPC, of: str = "write") -> dict[str, str]:
    """What a process needs so that below `folder` everything fails with `error` after so many bytes."""
    return {
        "LD_PRELOAD": library(),
        "FAULT_FOLDER": str(folder.resolve()),
        "FAULT_BYTES": str(after),
        "FAULT_ERRNO": str(error),
        "FAULT_OF": of,
    }
