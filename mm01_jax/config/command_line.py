"""From what a person names to a checked Config.

    mm01-train --config=tiny --config.train.steps=10

`--config` names a shipped config (`tiny`), a Python file with `get_config() -> Config` (it is run: use your own files
only; `from . import other` takes a file beside it) or a saved config in JSON (data, never run). `--config.KEY=VALUE`
replaces one leaf, read by the leaf's declared type. Everything wrong is reported at once, before jax is imported.

The overrides are read here and not by `ml_collections.config_flags` (1.1.0): it assigns to its config's fields, which
frozen dataclasses refuse, raises a TypeError on a Literal, stops at the first mistake, and knows no near name for a
dataclass.
"""

import ast
import contextlib
import dataclasses
import importlib.util
import itertools
import os
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from typing import Any

from mm01_jax import config, files
from mm01_jax.config import Config, ConfigError, Problem, fields, rules, saved

_EXAMPLE = "configs/tiny.py"
_MOST_BESIDE = 1000  # files of a folder that are looked at for a near name
_FOLDER = "folder_of_the_config_file"
ALLOWED = "a shipped config's name, a .py file with get_config, or a saved config in .json"


def load_config(name: str, overrides: Sequence[str] = (), *, trained: bool = False) -> Config:
    """The config of a shipped name or a file with overrides ("train.steps=10") applied, checked.

    Args:
      trained: whether it is to be trained, which asks for more (`rules.training_problems`).

    Raises:
      ConfigError: with everything that is wrong.
    """
    run_config = read_file(name)
    sections = [p for p in fields.type_problems(run_config) if p.key not in fields.leaf_types()]
    if sections:
        raise ConfigError(sections)
    problems = []
    for assignment in overrides:
        try:
            run_config = _assign(run_config, assignment)
        except ConfigError as error:
            problems += error.problems
    unread = [key for problem in problems for key in (problem.key, problem.nearest) if key in fields.leaf_types()]
    problems += rules.problems(run_config, unread)
    problems += rules.training_problems(run_config) if trained and not problems else []
    if problems:
        raise ConfigError(problems)
    return run_config


def _refused(key: str, got: Any, allowed: str, nearest: str | None) -> ConfigError:
    return ConfigError([Problem(key=key, got=got, allowed=allowed, nearest=nearest)])


def shipped() -> dict[str, pathlib.Path]:
    """Name -> file of every config that comes with the library."""
    package = pathlib.Path(config.__file__).parents[1]
    folder = package / "configs"  # of an installed wheel
    if not folder.is_dir():
        folder = package.parent / "configs"  # of a checkout
    return {file.stem: file for file in sorted(folder.glob("[a-z]*.py"))}


def read_file(path: str) -> Config:
    """The config of a shipped name, or of a .py or .json file; that of a .py file is not checked yet."""
    file = shipped().get(path) or pathlib.Path(path)
    if not os.path.isfile(file) and file.parent.name == "configs":
        file = shipped().get(file.stem, file)  # `configs/tiny.py` as in a checkout, typed elsewhere
    if os.path.isdir(file) and os.path.isfile(file / "config.json"):
        raise _refused("--config", path, ALLOWED, str(file / "config.json"))  # a run's folder
    if file.suffix not in (".py", ".json") or not os.path.exists(file):
        raise _refused("--config", path, f"{ALLOWED}, that exists", _nearest(file))
    if not os.path.isfile(file):
        raise _refused("--config", path, f"{ALLOWED}; it is no regular file", None)
    if (size := os.path.getsize(file)) > saved.MOST_BYTES:
        raise _refused("--config", path, f"a file of at most {saved.MOST_BYTES:,} bytes; it has {size:,}", None)
    if file.suffix == ".py":
        return _run_file(file)
    try:
        return saved.from_json(files.Door().text(file, most=saved.MOST_BYTES))
    except files.FileError as error:
        raise _refused("--config", path, f"{ALLOWED}, that can be read ({error})", _EXAMPLE) from None
    except ConfigError as error:
        raise ConfigError(error.problems, files.shown(str(file))) from None


def _nearest(file: pathlib.Path) -> str:
    """A file beside it or a shipped name, the first the most like it."""
    names = {name: name for name in shipped()}
    if os.path.isdir(file.parent):
        beside = itertools.islice(_configs_in(file.parent), _MOST_BESIDE)
        names |= {other.stem: str(other) for other in beside if other.name != "__init__.py"}
    return names.get(fields.nearest_name(file.stem, names), "tiny")


def _configs_in(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Nothing of a folder that may not be listed."""
    with contextlib.suppress(OSError):
        yield from (other for other in folder.iterdir() if other.suffix in (".py", ".json"))


def _run_file(file: pathlib.Path) -> Config:
    """Calls get_config of a Python file; what goes wrong inside is the file's, told with its line."""
    spec = importlib.util.spec_from_file_location(f"{_FOLDER}.{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        with _beside(file):
            spec.loader.exec_module(module)
            run_config = module.get_config()
    except (ConfigError, KeyboardInterrupt):
        raise
    except (Exception, SystemExit, GeneratorExit) as error:  # `sys.exit()` of a file would end us without a word
        raise _file_error(file, error) from error
    if type(run_config) is not Config:
        raise _refused(f"get_config() of {file}", run_config, "a mm01_jax.config.Config", f"see {_EXAMPLE}")
    return run_config


@contextlib.contextmanager
def _beside(file: pathlib.Path) -> Iterator[None]:
    """A context in which `from . import other` of the file takes what lies beside it."""

    def take() -> dict[str, types.ModuleType]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if f"{name}.".startswith(f"{_FOLDER}.")}

    outer = take()  # of a file that loads another config
    folder = types.ModuleType(_FOLDER)
    folder.__path__ = [str(file.parent)]
    sys.modules[_FOLDER] = folder
    try:
        yield
    finally:
        take()
        sys.modules.update(outer)


def _file_error(file: pathlib.Path, error: Exception) -> ConfigError:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    where = f"{file}, line {lines[-1]}" if lines else str(file)
    unknown = re.fullmatch(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'.*", str(error))
    section = getattr(config, unknown[1], None) if unknown else None
    if dataclasses.is_dataclass(section):
        names = fields.field_types(section)
        allowed = f"the fields of {unknown[1]}: {', '.join(names)}"
        return _refused(where, unknown[2], allowed, fields.nearest_name(unknown[2], names))
    got = f"{type(error).__name__}: {error}"
    return _refused(where, got, "a file whose get_config() returns a Config", f"see {_EXAMPLE}")


def _assign(run_config: Config, assignment: str) -> Config:
    key, equals, text = assignment.partition("=")
    leaves = fields.leaf_types()
    if key not in leaves:
        raise _unknown_key(key, text)
    if not equals:
        raise _refused(key, "no value", fields.describe(leaves[key]), f"--config.{key}=VALUE")
    return fields.replace(run_config, key, _read(key, text, leaves[key]))


def _unknown_key(key: str, text: str) -> ConfigError:
    leaves = list(fields.leaf_types())
    inside = [leaf for leaf in leaves if leaf.startswith(f"{key}.")]
    if inside:
        return _refused(key, text, f"one field of this section at a time: {', '.join(inside)}", inside[0])
    prefix = key[: key.rfind(".") + 1]
    siblings = [leaf.removeprefix(prefix).partition(".")[0] for leaf in leaves if leaf.startswith(prefix)]
    allowed = f"the fields of {prefix.removesuffix('.') or 'config'}: {', '.join(dict.fromkeys(siblings))}"
    if not siblings:
        allowed = f"the sections of config: {', '.join(fields.field_types(Config))}"
    return _refused(key, text, allowed, fields.nearest_key(key))


def _read(key: str, text: str, annotation: Any) -> Any:
    """Text as a value of the declared type: as it stands, as a Python or JSON literal, as a number (nan, 1e-4)."""
    closest = text
    for read in (str, ast.literal_eval, float):
        try:
            value = fields.canonical(read(text), annotation)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if fields.fits(value, annotation):
            return value
        closest = value
    raise _refused(key, text, fields.describe(annotation), fields.nearest_value(key, closest, annotation))
