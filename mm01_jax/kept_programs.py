"""Programs are kept as they were traced, so that the next start need not trace them: training's step, the engine's.

jax's compile cache is asked when a program has been traced and lowered, which takes Python 13 of the 15 s of a second
start on a GPU: two thirds of that are kernels, each through Mosaic's layout inference. What comes out, StableHLO, is
kept beside that cache (`jax.export`).

It is taken only where nothing differs that tracing reads (`Kept._name`): our sources by content, the libraries by
version and by sizes and times of their files, jax's settings, the config, the devices, every argument. Code that was
changed inside a running process cannot be seen so: only commands keep programs, and not where something has imported
jax before them (a config). Nothing is kept by several processes, which might not have the same, nor on TPUs, where it
has not been tried.
"""

import contextlib
import dataclasses
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

import jax
from jax.tree_util import PyTreeDef

from mm01_jax import files
from pallas_kernels import dispatch

OURS = ("mm01_jax", "pallas_kernels")
LIBRARIES = ("jax", "jaxlib", "flax", "optax")  # that tracing runs through
SETTINGS = ("JAX_", "XLA_", "MOSAIC_", "PALLAS_", "FLAX_")  # how variables begin that they may read
KERNELS = ("mosaic_gpu_v2", "__gpu$xla.gpu.triton")  # whose form jax promises for one version
MOST_FILES = 16  # of a name, of some 2 MB each; then the least recently used go
_FORMAT = b"2"
_DIGEST = hashlib.sha256().digest_size


class Kept:
    """Programs as this start or an earlier one has traced them, in a folder."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    @classmethod
    def of_this_start(cls) -> "Kept | None":
        """None where nothing is kept."""
        if jax.process_count() > 1 or dispatch.platform() == "tpu" or not (folder := _folder()):
            return None
        return cls(folder)

    def traced(self, function: Callable, arguments: tuple, results: PyTreeDef, described: str, *, name: str) -> bytes:
        """`function` of `arguments` as StableHLO, from the folder or traced into it.

        Args:
          results: the structure of what it returns; what has none of our classes may be one leaf of it.
          described: all that `function` closes over, and how it will be compiled, as text.
          name: of the program.
        """
        from jax import export  # late: a start without a cache needs it not

        shaped = jax.tree.map(_shaped, arguments)
        path = self._folder / self._name(name, shaped, f"{described} {results}")
        if (kept := _read(path)) is None:
            flat = jax.jit(functools.partial(_of_leaves, function, jax.tree.structure(arguments), results))
            checks = [export.DisabledSafetyCheck.custom_call(name) for name in KERNELS]
            with _for_this_version():
                exported = export.export(flat, disabled_checks=checks)(*jax.tree.leaves(shaped))
                kept = bytes(exported.serialize(vjp_order=0))
            _write(path, kept)
        return kept

    def _name(self, name: str, arguments: tuple, described: str) -> str:
        """A name for everything that tracing reads.

        Raises:
          ValueError: a text names an object by its place in memory, which says nothing of it.
        """
        devices = jax.sharding.get_mesh().devices.flat
        texts = [
            described,
            str(jax.tree.structure(arguments)),
            *(f"{x.shape} {x.dtype} {x.weak_type} {x.sharding}" for x in jax.tree.leaves(arguments)),
            *(f"{device.id} {device.device_kind}" for device in devices),
            f"{jax.sharding.get_mesh()} {devices[0].client.platform_version}",
        ]
        if unnamed := next((text for text in texts if " at 0x" in text), None):
            raise ValueError(f"{unnamed[:200]} has an object without a name")
        return f"{name}-{_digest(texts, self._surroundings).hexdigest()}"

    @functools.cached_property
    def _surroundings(self) -> bytes:
        """What every program of a start shares: settings, libraries, our sources."""
        dispatch.load_runtime()  # which sets variables of these names: a start's first program would have other ones
        texts = [
            sys.version,
            *sorted(f"{name}={value!r}" for name, value in jax.config.values.items()),
            *sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(SETTINGS)),
            *(f"{name} {metadata.version(name)}" for name in LIBRARIES),
            *(f"{path} {status.st_size} {status.st_mtime_ns}" for path, status in _statuses(LIBRARIES)),
        ]
        digest = _digest(texts, _FORMAT)
        for package in OURS:
            for path in _sources(package):
                for part in (f"{package} {path.relative_to(_folder_of(package))}".encode(), path.read_bytes()):
                    digest.update(hashlib.sha256(part).digest())
        return digest.digest()


def compiled(kept: bytes, arguments: tuple, results: PyTreeDef, *, name: str, jit: Callable):
    """A program of `Kept.traced`'s bytes. From these in any case, also where it was traced just now: the compile cache
    then finds one program, whichever start it was.

    Args:
      jit: as `jax.jit`, with its options.
    """
    from jax import export

    dispatch.load_runtime()
    exported = export.deserialize(bytearray(kept))
    if b"lapack" not in exported.mlir_module_serialized:
        # Whoever calls what was exported for "cpu" imports SciPy for its LAPACK, 0.15 s. `_name` has the platform.
        anywhere = (export.DisabledSafetyCheck.platform(),)
        exported = dataclasses.replace(exported, platforms=("any",), disabled_safety_checks=anywhere)

    def call(*arguments):
        return results.unflatten(exported.call(*jax.tree.leaves(arguments)))

    call.__name__ = name
    return jit(call).lower(*arguments).compile()


def kept_step(function: Callable, described: str | None, log: Callable[[str], None], **options) -> Callable:
    """`jax.jit(function, donate_argnums=0, **options)` of function(state, batch) -> (state like it, dict of arrays).

    The first call with batches of a shape takes the kept program, or traces one and keeps it.

    Args:
      described: all that `function` closes over, as text; None: keep nothing.
      options: of `jax.jit`.
    """
    jit = functools.partial(jax.jit, donate_argnums=0, **options)
    traced_anew, kept = jit(function), None if described is None else Kept.of_this_start()
    if kept is None:
        return traced_anew
    described = f"{described} {sorted(options.items(), key=lambda item: item[0])!r}"
    programs: dict[tuple, Callable] = {}

    def step(state, batch):
        shapes = tuple(x.shape for x in jax.tree.leaves(batch))
        if shapes not in programs:
            results = jax.tree.structure((state, 0))
            try:
                traced = kept.traced(function, (state, batch), results, described, name="step")
                programs[shapes] = compiled(traced, (state, batch), results, name="train_step", jit=jit)
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


def _of_leaves(function: Callable, tree: PyTreeDef, results: PyTreeDef, *leaves) -> list:
    """The function of arrays alone: what is kept names no class of ours."""
    return results.flatten_up_to(function(*tree.unflatten(leaves)))


def _shaped(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding, weak_type=x.weak_type)


def _digest(texts: list[str], first: bytes):
    digest = hashlib.sha256(first)
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest


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
        alike = path.parent.glob(f"{path.name.partition('-')[0]}-*")
        by_age = sorted(alike, key=lambda other: other.stat().st_mtime)
        for other in by_age[:-MOST_FILES]:
            other.unlink(missing_ok=True)
    except OSError:
        return  # a cache that is only read, or full: as jax's own
