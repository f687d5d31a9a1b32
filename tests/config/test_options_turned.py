"""Every option of a config is turned: in a shipped config, or by a test that runs with another value than the default.

A test turns an option when it calls something with a literal value that is not the usual one, outside
`pytest.raises`: `small.config(train__steps=4)`, `DataConfig(held_out=0.5)`, `variant(softmax_beta=0.0)`,
`dataclasses.replace(config.train, seed=1)`, or types `--config.train.steps=4`. Tests of the configs themselves do not
count: they judge values and run nothing.
"""

import ast
import dataclasses
import functools
import pathlib
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from mm01_jax import config as configs
from mm01_jax.config import Config, command_line, fields

ROOT = pathlib.Path(__file__).parents[2]
# The section of each class, and of the helpers that take a section's fields by keyword.
_SECTIONS = {
    "ModelConfig": "model",
    "ComputeConfig": "compute",
    "VisionConfig": "vision",
    "Rules": "mesh.rules",
    "MeshConfig": "mesh",
    "DataConfig": "data",
    "ScheduleConfig": "optimizer.schedule",
    "OptimizerConfig": "optimizer",
    "TrainConfig": "train",
}


@functools.cache
def _shipped() -> tuple[Config, ...]:
    return tuple(command_line.load_config(str(path)) for path in sorted(ROOT.glob("configs/[a-z]*.py")))


def _usual(key: str) -> Any:
    """The default; of a leaf that has none, the value of most shipped configs."""
    default = fields.default(key)
    if default is not dataclasses.MISSING:
        return default
    return Counter(fields.get(config, key) for config in _shipped()).most_common(1)[0][0]


def _turned(key: str, value: ast.expr) -> bool:
    """Whether a value in a test's text is one that the option may have, and not the usual one."""
    kind = fields.leaf_types().get(key)
    if kind is None:
        return False
    if key == "vision":
        return isinstance(value, ast.Call | ast.Name)
    try:
        literal = fields.canonical(ast.literal_eval(value), kind)
    except ValueError:
        return False
    return fields.fits(literal, kind) and literal != _usual(key)


def _turned_by(tree: ast.AST) -> Iterator[str]:
    """The keys that a test's text turns."""
    if isinstance(tree, ast.With) and any("raises" in ast.dump(item.context_expr) for item in tree.items):
        return
    if isinstance(tree, ast.Call):
        sections = _sections_of(tree)
        for keyword in tree.keywords:
            keys = [(keyword.arg or "").replace("__", "."), *(f"{section}.{keyword.arg}" for section in sections)]
            yield from (key for key in keys if _turned(key, keyword.value))
    if isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        typed = re.fullmatch(r"--config\.([a-z0-9_.]+)=(.+)", tree.value)
        if typed and typed[1] in fields.leaf_types():
            text = typed[2] if re.fullmatch(r"[\d.e+()\[\],' -]+|None", typed[2]) else repr(typed[2])
            yield from [typed[1]] if _turned(typed[1], ast.parse(text, mode="eval").body) else []
    for child in ast.iter_child_nodes(tree):
        yield from _turned_by(child)


def _sections_of(call: ast.Call) -> list[str]:
    """The sections whose fields a call may take by their bare names."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name in _SECTIONS:
        return [_SECTIONS[name]]
    if name == "replace" and call.args:  # dataclasses.replace(config.train, ...)
        section = getattr(call.args[0], "attr", getattr(call.args[0], "id", ""))
        return [key for key in (*_SECTIONS.values(),) if key.rpartition(".")[2] == section]
    return ["model", "compute"] if name in ("variant", "replace") else []


@functools.cache
def _turned_in_tests() -> set[str]:
    files = [path for path in sorted(ROOT.glob("tests/**/*.py")) if path.parent.name not in ("config", "house")]
    return {key for path in files for key in _turned_by(ast.parse(path.read_text()))}


def test_sections_are_those_of_a_config():
    assert all(dataclasses.is_dataclass(getattr(configs, name)) for name in _SECTIONS)
    leaves = {key.rpartition(".")[0] for key in fields.leaf_types()} - {""}
    assert leaves == {*_SECTIONS.values()} - {"vision"}


@pytest.mark.parametrize("key", fields.leaf_types())
def test_option_is_turned_in_a_shipped_config_or_by_a_test(key):
    in_configs = {fields.get(config, key) for config in _shipped()} - {_usual(key)}
    assert in_configs or key in _turned_in_tests(), f"{key} is {_usual(key)!r} in every config and in every test"


@pytest.mark.parametrize(
    ("text", "turned"),
    [
        ("small.config(train__log_every=2)", {"train.log_every"}),
        ("small.config(train__log_every=1)", set()),
        ("small.config(train__log_every='2')", set()),
        ("small.config(log_every=2)", set()),
        ("with pytest.raises(ConfigError):\n    small.config(train__log_every=2)", set()),
        ("TrainConfig(log_every=2)", {"train.log_every"}),
        ("DataConfig(log_every=2)", set()),
        ("dataclasses.replace(config.train, log_every=2)", {"train.log_every"}),
        ("dataclasses.replace(config.data, log_every=2)", set()),
        ("variant(softmax_beta=0.5)", {"model.softmax_beta"}),
        ("log_every = 2", set()),
        ("'train.log_every'", set()),
        ("['--config.train.log_every=2']", {"train.log_every"}),
        ("['--config.train.log_every=1']", set()),
        ("['--config.compute.exchange=ragged']", {"compute.exchange"}),
    ],
)
def test_what_counts_as_turning(text, turned):
    assert {*_turned_by(ast.parse(text))} == turned
