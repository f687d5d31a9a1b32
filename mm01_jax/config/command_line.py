"""From a command line to a checked Config.

    python train_main.py --config=configs/tiny.py --config.train.steps=10

`--config` names a Python file with `get_config() -> Config` (it is run: use your own files only) or a saved config in
JSON (data, never run). `--config.KEY=VALUE` replaces one leaf, read by the leaf's declared type. Everything wrong is
reported at once, before jax is imported.

The flags are absl's. The overrides are read here and not by `ml_collections.config_flags` (1.1.0): it assigns to its
config's fields, which frozen dataclasses refuse, raises a TypeError on a Literal, stops at the first mistake, and knows
no near name for a dataclass.
"""

import ast
import dataclasses
import importlib.util
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from absl import flags

from mm01_jax import config
from mm01_jax.config import Config, ConfigError, Problem, fields, rules, saved

_EXAMPLE = "configs/tiny.py"


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses a command line into absl's flags; returns its overrides, `--config.` taken off: ["train.steps=10"].

    Raises ConfigError on an unknown or ill-valued flag and on an argument that is no flag.
    """
    override = re.compile(r"--?config\.(.*)", re.DOTALL)
    rest = [argument for argument in argv if not override.fullmatch(argument)]
    if "--help" in rest:
        print(sys.modules["__main__"].__doc__, flags.FLAGS.main_module_help(), sep="\n")
        raise SystemExit(0)
    try:
        surplus = flags.FLAGS(rest)[1:]
    except flags.UnrecognizedFlagError as error:
        known = [*flags.FLAGS, *(f"config.{key}" for key in fields.leaf_types())]
        near = fields.nearest_name(error.flagname, known)
        raise _refused(f"--{error.flagname}", error.flagvalue, "a flag (see --help)", f"--{near or 'config'}") from None
    except flags.Error as error:
        raise _refused("command line", rest[1:], str(error), "see --help") from None
    if surplus:
        raise _refused("command line", surplus[0], "flags, written --name=value", f"--config={surplus[0]}")
    return [match[1] for match in map(override.fullmatch, argv) if match]


def require_flag(name: str, value: str | None, allowed: str, example: str) -> None:
    """Raises ConfigError when a flag that the program needs was not given."""
    if not value:
        raise _refused(f"--{name}", value, allowed, example)


def _refused(key: str, got: Any, allowed: str, nearest: str | None) -> ConfigError:
    return ConfigError([Problem(key=key, got=got, allowed=allowed, nearest=nearest)])


def load(path: str | None, overrides: Sequence[str] = ()) -> Config:
    """The config of a file with overrides ("train.steps=10") applied, checked; else ConfigError with every problem."""
    run_config = read_file(path)
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
    if problems:
        raise ConfigError(problems)
    return run_config


def read_file(path: str | None) -> Config:
    """The config of a .py or .json file; that of a .py file is not checked yet."""
    allowed = "a .py file with get_config, or a saved config in .json"
    if path is None:
        raise _refused("--config", path, allowed, f"--config={_EXAMPLE}")
    file = pathlib.Path(path)
    if file.suffix not in (".py", ".json") or not file.is_file():
        raise _refused("--config", path, f"{allowed}, that exists", _nearest_file(file))
    if file.suffix == ".py":
        return _run_file(file)
    try:
        return saved.from_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise _refused("--config", path, f"{allowed}, that can be read ({error})", _EXAMPLE) from None


def _nearest_file(file: pathlib.Path) -> str:
    folders = [folder for folder in (file.parent, pathlib.Path("configs")) if folder.is_dir()]
    known = [str(other) for folder in folders for other in sorted(folder.iterdir()) if other.suffix in (".py", ".json")]
    known = [name for name in known if not name.endswith("__init__.py")]
    by_stem = {pathlib.Path(name).stem: name for name in reversed(known)}
    return by_stem.get(fields.nearest_name(file.stem, by_stem), _EXAMPLE)


def _run_file(file: pathlib.Path) -> Config:
    """Calls get_config of a Python file; what goes wrong inside is the file's, told with its line."""
    spec = importlib.util.spec_from_file_location("config_file", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        run_config = module.get_config()
    except ConfigError:
        raise
    except Exception as error:
        raise _file_error(file, error) from error
    if type(run_config) is not Config:
        raise _refused(f"get_config() of {file}", run_config, "a mm01_jax.config.Config", f"see {_EXAMPLE}")
    return run_config


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
