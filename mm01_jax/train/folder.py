"""The work directory of a run: whether it can be used, known before any work; its small files, whole or not there."""

import contextlib
import os
import pathlib
import tempfile

from mm01_jax import command, files, taken
from mm01_jax.config import ConfigError, Problem


def check(workdir: str) -> None:
    """Raises ConfigError where `workdir` cannot be written, or not be made, or is no run's; leaves nothing behind.

    It imports no jax, so that a mistyped folder is refused in an instant.
    """
    path = pathlib.Path(workdir)
    _check_free(workdir)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)  # a name that is too long, or below a file
        there = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise _refused(workdir, error) from None


def make(workdir: str) -> pathlib.Path:
    """The folder, made where it is not there; ConfigError where that fails."""
    path = pathlib.Path(workdir)
    _check_free(workdir)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(workdir, error) from None
    return path


def write(path: pathlib.Path, text: str) -> None:
    """Writes a file under a temporary name and renames it into place, a link's included; OSError names it."""
    try:
        files.write(path, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _check_free(workdir: str) -> None:
    if whole := taken.at(workdir, but=taken.RUN):
        allowed = f"a folder of the run's own, new or of the same run: {whole}"
        raise ConfigError([Problem(key="--workdir", got=workdir, allowed=allowed, nearest=None)])


def _refused(workdir: str, error: OSError) -> ConfigError:
    allowed = f"a folder that can be made and written ({error.strerror})"
    refused = ConfigError([Problem(key="--workdir", got=workdir, allowed=allowed, nearest=None)])
    if command.exit_code(error) == command.DISK:
        refused.exit_code = command.DISK
    return refused
