"""The training step's program is kept as it was traced, so that the next start of the same run need not trace it.

jax's compile cache is asked when a program has been traced and lowered, which takes Python 13 of the 15 s of a second
start on a GPU: two thirds of that are kernels, each through Mosaic's layout inference. What comes out, StableHLO, is
kept beside that cache (`jax.export`).

It is taken only where nothing differs that tracing reads (`_key`): our sources by content, the libraries by version and
by sizes and times of their files, jax's settings, the config, the devices, every argument. Code that was changed inside
a running process cannot be seen so: `mm01-train` alone keeps programs, and not where a config has imported jax. Nothing
is kept by several processes, which might not have the same, nor on TPUs, where it has not been tried.
"""

import contextlib
import functools
import hashlib
import importlib.util
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import jax

from mm01_jax import files
from pallas_kernels import dispatch

OURS = ("mm01_jax", "pallas_kernels")
LIBRARIES = ("jax", "jaxlib", "flax", "optax")  # that tracing runs through
SETTINGS = ("JAX_", "XLA_", "MOSAIC_", "PALLAS_", "FLAX_")  # how variables begin that they may read
KERNELS = ("mosaic_gpu_v2", "__gpu$xla.gpu.triton")  # whose form jax promises for one version
MOST_FILES = 16  # of some 2 MB each; then the least recently used go
_FORMAT = b"1"
_DIGEST = hashlib.sha256().digest_size


def kept_step(function: Callable, described: str | None, log: Callable[[str], None], **options) -> Callable:
    """`jax.jit(function, donate_argnums=0, **options)` of function(state, batch) -> (state like it, dict of arrays).

    The first call with batches of a shape takes the kept program, or traces one and keeps it.

    Args:
      described: all that `function` closes over, as text; None: keep nothing.
      options: of `jax.jit`.
    """
    traced_anew = jax.jit(function, donate_argnums=0, **options)
    if described is None or jax.process_count() > 1 or dispatch.platform() == "tpu" or not (folder := _folder()):
        return traced_anew
    programs: dict[tuple, Callable] = {}

    def step(state, batch):
        shapes = tuple(x.shape for x in jax.tree.leaves(batch))
        if shapes not in programs:
            try:
                programs[shapes] = _program(function, (state, batch), folder, described, options)
            except Exception as error:  # no start fails for a file; what is wrong with the step itself rises below
                log(f"the step's program is not kept: {type(error).__name__}: {str(error)[:300]}")
                programs[shapes] = traced_anew
        return programs[shapes](state, batch)

    return step


def _folder() -> pathlib.Path | None:
    """Where programs lie: in jax's compile cache, where that is a folder and our sources are older than the process."""
    chosen = jax.config.jax_compilation_cache_dir
    if not chosen or not jax.config.jax_enable_compilation_cache or "://" in chosen:
        return None
    if importlib.util.find_spec("flatbuffers") is None:  # which jax.export writes with
        return None
    changed = max((path.stat().st_mtime for package in OURS for path in _sources(package)), default=math.inf)
    return pathlib.Path(chosen) / "programs" if changed < _process_began() else None


def _process_began() -> float:
    """By the clock of files, seconds; 0 where the system does not say, and then every source is too new."""
    stat = pathlib.Path("/proc/self/stat")
    if not stat.exists() or not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])  # proc(5): field 22, the second is in brackets
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def _program(function: Callable, arguments: tuple, folder: pathlib.Path, described: str, options: dict) -> Callable:
    """The compiled step of such arguments, from the folder or traced into it."""
    from jax import export  # late: a start without a cache needs it not

    dispatch.load_runtime()
    shaped = jax.tree.map(_shaped, arguments)
    path = folder / f"step-{_key(shaped, described, options)}"
    if (kept := _read(path)) is None:
        flat = jax.jit(functools.partial(_of_leaves, function, jax.tree.structure(arguments)))
        checks = [export.DisabledSafetyCheck.custom_call(name) for name in KERNELS]
        with _for_this_version():
            kept = bytes(export.export(flat, disabled_checks=checks)(*jax.tree.leaves(shaped)).serialize(vjp_order=0))
        _write(path, kept)
    # From its bytes in any case: the compile cache then finds one program, whichever start it was.
    exported, tree = export.deserialize(bytearray(kept)), jax.tree.structure(arguments[0])

    def train_step(state, batch):
        leaves, metrics = exported.call(*jax.tree.leaves((state, batch)))
        return tree.unflatten(leaves), metrics

    return jax.jit(train_step, donate_argnums=0, **options).lower(*arguments).compile()


@contextlib.contextmanager
def _for_this_version() -> Iterator[None]:
    """A context in which kernels are exported as they are lowered, not in a form that older versions can read."""
    name = "jax_export_ignore_forward_compatibility"
    before = jax.config.values[name]
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _of_leaves(step: Callable, tree, *leaves):
    """The step of arrays alone: what is kept names no class of ours."""
    arguments = tree.unflatten(leaves)
    state, metrics = step(*arguments)
    assert jax.tree.structure(state) == jax.tree.structure(arguments[0])
    return jax.tree.leaves(state), metrics


def _shaped(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding, weak_type=x.weak_type)


def _key(arguments: tuple, described: str, options: dict[str, Any]) -> str:
    """A name for everything that tracing reads."""
    devices = jax.sharding.get_mesh().devices.flat
    texts = [
        described,
        repr(sorted(options.items(), key=lambda item: item[0])),
        str(jax.tree.structure(arguments)),
        *(f"{x.shape} {x.dtype} {x.weak_type} {x.sharding}" for x in jax.tree.leaves(arguments)),
        *(f"{device.id} {device.device_kind}" for device in devices),
        f"{jax.sharding.get_mesh()} {devices[0].client.platform_version} {sys.version}",
        *sorted(f"{name}={value!r}" for name, value in jax.config.values.items()),
        *sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(SETTINGS)),
        *(f"{name} {metadata.version(name)}" for name in LIBRARIES),
        *(f"{path} {status.st_size} {status.st_mtime_ns}" for path, status in _statuses(LIBRARIES)),
    ]
    digest = hashlib.sha256(_FORMAT)
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    for package in OURS:
        for path in _sources(package):
            for part in (f"{package} {path.relative_to(_folder_of(package))}".encode(), path.read_bytes()):
                digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _sources(package: str) -> list[pathlib.Path]:
    """An editor's lock may be a link named as a source is, which leads nowhere."""
    return sorted(path for path in _folder_of(package).rglob("*.py") if path.is_file())


def _folder_of(package: str) -> pathlib.Path:
    return pathlib.Path(importlib.util.find_spec(package).origin).parent


def _statuses(packages: tuple[str, ...]) -> Iterator[tuple[str, os.stat_result]]:
    """Of every source and library of packages, in one order."""
    for package in packages:
        for folder, folders, names in os.walk(_folder_of(package)):
            folders.sort()
            for path in (os.path.join(folder, name) for name in sorted(names) if name.endswith((".py", ".so"))):
                yield path, os.stat(path)


def _read(path: pathlib.Path) -> bytes | None:
    """A kept program; None where there is none or its file is torn."""
    try:
        found = files.Door().read(path)
        os.utime(path)  # it was used
    except (files.FileError, OSError):
        return None
    digest, program = found[:_DIGEST], found[_DIGEST:]
    return program if hashlib.sha256(program).digest() == digest else None


def _write(path: pathlib.Path, program: bytes) -> None:
    """Keeps a program, as long as the folder can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, hashlib.sha256(program).digest() + program)
        by_age = sorted(path.parent.glob("step-*"), key=lambda other: other.stat().st_mtime)
        for other in by_age[:-MOST_FILES]:
            other.unlink(missing_ok=True)
    except OSError:
        return  # a cache that is only read, or full: as jax's own
