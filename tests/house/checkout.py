"""The files that this project consists of, and each Python file parsed once."""

import ast
import functools
import pathlib
import subprocess
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]
# What a tree without git is not searched for: what tools leave behind.
LEFT_BEHIND = ("__pycache__", "build", "dist", "runs", "mm01_jax.egg-info")


@functools.cache
def files() -> tuple[pathlib.Path, ...]:
    """Files that git tracks, or would: new ones are seen before they are committed, ignored ones never."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout: an unpacked archive
        return tuple(sorted(_below(ROOT)))
    paths = {ROOT / name for name in listed.split("\0") if name}
    return tuple(sorted(path for path in paths if path.is_file()))


def _below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for path in folder.iterdir():
        if path.is_file():
            yield path
        elif not (path.name.startswith(".") or path.name in LEFT_BEHIND or (path / "pyvenv.cfg").exists()):
            yield from _below(path)


@functools.cache
def modules() -> dict[str, pathlib.Path]:
    """Name -> file of every Python file, whole names: `mm01_jax.train.loop`; a package has its own name."""
    return {module_name(path): path for path in files() if path.suffix == ".py"}


def module_name(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def tree(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Every module that a file may import, as full names. `from a import b` gives a.b, and a where b is no module of
    ours but a name in a."""
    path, package, found = modules()[module], module.split("."), set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + (path.name == "__init__.py")] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= names if names <= modules().keys() else {base, *names}
    return frozenset(found)


def inside(module: str, rooms: str | tuple[str, ...]) -> bool:
    rooms = (rooms,) if isinstance(rooms, str) else rooms
    return any(f"{module}.".startswith(f"{room}.") for room in rooms)
