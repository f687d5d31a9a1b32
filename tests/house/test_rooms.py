"""Who may import whom: arrows between rooms point down, and each outside library has one door."""

import ast
import pathlib
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[2]
ROOMS = ("train_main.py", "configs", "mm01_jax", "pallas_kernels")
FILES = sorted(path for room in ROOMS for path in ((ROOT / room).rglob("*.py") if "." not in room else [ROOT / room]))

# Lower may not import higher. A module belongs to the longest prefix that fits.
LEVELS = {
    "train_main": 5,
    "configs": 5,
    "mm01_jax": 4,  # verbs: train, generate, convert, data, checkpoint, plan, evals
    "mm01_jax.model": 3,
    "mm01_jax.parallel": 2,
    "mm01_jax.sharding": 1,
    "mm01_jax.config": 0,
    "pallas_kernels": 0,
}

# Outside library -> the only modules that may import it.
DOORS = {
    "orbax": "mm01_jax.checkpoint",
    "tensorstore": "mm01_jax.checkpoint",
    "grain": "mm01_jax.data",
    "array_record": "mm01_jax.data",
    "tokenizers": "mm01_jax.data",
    "safetensors": "mm01_jax.convert",
    "jax.experimental.pallas": "pallas_kernels",
    "absl.flags": (
        "mm01_jax.config",
        "mm01_jax.command",
        "train_main",
        "mm01_jax.inference",
        "mm01_jax.plan",
        "mm01_jax.evals",
        "mm01_jax.convert",
    ),
}

NEVER_IMPORTED = ("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "torch", "jax._src")
NEVER_CALLED = ("eval", "exec", "compile", "__import__")


def module_name(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: pathlib.Path) -> Iterator[str]:
    """Every module that a file may import, as full names; `from a import b` gives a and a.b."""
    package = module_name(path).split(".")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + (path.name == "__init__.py")] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def inside(module: str, rooms: str | tuple[str, ...]) -> bool:
    rooms = (rooms,) if isinstance(rooms, str) else rooms
    return any(f"{module}.".startswith(f"{room}.") for room in rooms)


def level(module: str) -> int | None:
    fitting = [room for room in LEVELS if inside(module, room)]
    return LEVELS[max(fitting, key=len)] if fitting else None


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_down(path):
    own = level(module_name(path))
    ours = {name for name in imports(path) if level(name) is not None and name not in ("mm01_jax", "configs")}
    upward = sorted(name for name in ours if level(name) > own)
    assert not upward, f"{module_name(path)} (level {own}) imports {upward} from above it"
    foreign = {name for name in imports(path) if inside(name, ("tests", "benchmarks", "notebooks"))}
    assert not foreign


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_outside_library_comes_in_through_its_door(path):
    for library, door in DOORS.items():
        found = [name for name in imports(path) if inside(name, library)]
        assert not found or _through(module_name(path), door), f"{found} belongs in {door}"


def _through(module: str, door: str | tuple[str, ...]) -> bool:
    return inside(module, door) or (door == "mm01_jax.checkpoint" and module.startswith(door))


@pytest.mark.parametrize("path", [p for p in FILES if inside(module_name(p), "pallas_kernels")], ids=module_name)
def test_kernels_import_jax_numpy_and_the_standard_library_alone(path):
    allowed = {"jax", "numpy", "pallas_kernels", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imports(path)} <= allowed


@pytest.mark.parametrize("path", [p for p in FILES if inside(module_name(p), "configs")], ids=module_name)
def test_configs_import_the_config_vocabulary_alone(path):
    assert all(inside(name, ("configs", "mm01_jax.config", *sys.stdlib_module_names)) for name in imports(path))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nothing_unpickles_or_runs_text_and_parameters_are_made_in_one_place(path):
    assert not [name for name in imports(path) if inside(name, NEVER_IMPORTED)]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in NEVER_CALLED and called != "torch.load", f"line {node.lineno}: {called}"
            # A config file that a person names is the one thing that is run.
            assert not called.endswith(".exec_module") or module_name(path) == "mm01_jax.config.command_line"
            assert called != "nnx.Param" or module_name(path) == "mm01_jax.model.layers", f"line {node.lineno}"
            for keyword in node.keywords:
                unsafe = keyword.arg in ("allow_pickle", "trust_remote_code")
                assert not unsafe or ast.unparse(keyword.value) == "False", f"line {node.lineno}: {keyword.arg}"


def test_no_file_names_a_machine():
    # Spelt in two parts, so that this file passes itself.
    places = ["/" + place for place in ("root/", "home/", "Users/", "work/", "workspace/", "content/drive")]
    skipped = {".git", ".venv", "runs", "build", "dist", "__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis"}
    kinds = (".py", ".md", ".toml", ".json", ".ipynb", ".txt", ".yaml", "")
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if path.is_file() and path.suffix in kinds and not skipped & set(parts) and "egg-info" not in parts[0]:
            text = path.read_text(encoding="utf-8")
            named = [place for place in places if place in text]
            assert not named, f"{path.relative_to(ROOT)} names {named}"
