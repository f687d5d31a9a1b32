"""Programs are compiled once for all runs: jax's persistent compilation cache, in the user's cache folder.

jax makes the keys. Its key of a CPU program does not say which instructions the CPU has, so the folder's name does: a
home may be shared by machines of several kinds.
"""

import hashlib
import importlib.util
import os
import pathlib
import platform
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable

from mm01_jax.messages import screen

MOST_BYTES = 2 * 2**30  # then the least recently used go
LEAST_SECONDS = 0.05  # what compiles faster is not worth a file
_OF_AN_ENTRY = re.compile(r"Error (reading|writing) persistent compilation cache entry for [^:]*: (.*)", re.DOTALL)
_HALF_WRITTEN_AFTER = 60.0  # seconds


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr)


_untouched = False


def keeps_traces() -> bool:
    """Whether the programs of this process may be kept as they were traced as well (`kept_programs.py`)."""
    return _untouched


def use(log: Callable[[str], None] = _to_stderr) -> None:
    """Lets this process's programs come from the cache and go into it; call it before the first is compiled.

    Whoever has set a cache of their own (JAX_COMPILATION_CACHE_DIR), be it read-only, or none
    (JAX_ENABLE_COMPILATION_CACHE=0), keeps that. Where it is no folder that can be read, or ours none that can be
    written, there is no cache, which is said. Where nothing has imported jax before, nothing has changed what will be
    traced, either.
    """
    global _untouched
    _untouched = "jax" not in sys.modules
    import jax

    if not jax.config.jax_enable_compilation_cache:
        return
    chosen = jax.config.jax_compilation_cache_dir
    bounded = importlib.util.find_spec("filelock") is not None  # without it jax has no bound and no lock
    try:
        folder = pathlib.Path(chosen) if chosen else default_folder()
        if "://" not in str(chosen):  # of a bucket jax knows more
            folder.mkdir(parents=True, exist_ok=True)
            os.scandir(folder).close()
        if not chosen:
            with tempfile.TemporaryFile(dir=folder):
                pass
        if bounded and not chosen:
            drop_half_written(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home
        log(f"no compile cache, every start compiles anew: {error}")
        jax.config.update("jax_enable_compilation_cache", False)  # jax would warn of every program
        return
    _warn_once(log)
    if chosen:
        return
    settings = {"jax_compilation_cache_max_size": MOST_BYTES} if bounded else {}
    settings |= {
        "jax_persistent_cache_min_compile_time_secs": LEAST_SECONDS,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_compilation_cache_dir": str(folder),
    }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def _warn_once(log: Callable[[str], None]) -> None:
    """Of all entries that jax cannot read or write (a full disk, a damaged file) one line, not two of each program."""
    others, said = warnings.showwarning, set()
    if getattr(others, "__module__", None) == __name__:  # another command of this process has
        return

    def show(message, category, filename, lineno, file=None, line=None):
        found = _OF_AN_ENTRY.match(str(message))
        if found is None:
            others(message, category, filename, lineno, file, line)
        elif found[1] not in said:
            said.add(found[1])
            done = {"reading": "read", "writing": "written"}[found[1]]
            log(f"a compiled program cannot be {done}: {screen(found[2])}; what cannot is compiled anew")

    warnings.showwarning = show


def default_folder() -> pathlib.Path:
    """$XDG_CACHE_HOME, or ~/.cache, /mm01_jax/compiled-CPU. RuntimeError without a home."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    root = pathlib.Path(named) if os.path.isabs(named) else pathlib.Path.home() / ".cache"
    return root / "mm01_jax" / f"compiled-{_processor()}"


def _processor() -> str:
    """A name for CPUs that run each other's programs: a hash of what Linux says of their instructions."""
    info = pathlib.Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    first = re.findall(r"(?m)^(?:model name|flags|Features|CPU part)\s*:.*$", text.split("\n\n")[0])
    return hashlib.sha256("\n".join([platform.machine(), *first]).encode()).hexdigest()[:12]


def drop_half_written(folder: pathlib.Path) -> None:
    """Deletes entries whose writer was killed: jax would complain of them at every start, and never write them again.

    A bounded cache's entry gets a second file, its last use, after the first is whole.
    """
    for entry in folder.glob("*-cache"):
        whole = entry.with_name(entry.name.removesuffix("-cache") + "-atime").exists()
        if not whole and time.time() - entry.stat().st_mtime > _HALF_WRITTEN_AFTER:
            entry.unlink(missing_ok=True)
