"""The names that programs build on: one table, one stub, nothing else under those names."""

import ast
import importlib

import pytest

import mm01_jax
from tests.house.checkout import ROOT, inside, modules, tree

NAMES = {
    "Config",
    "ConfigError",
    "Loaded",
    "MeshConfig",
    "Sampling",
    "TextModel",
    "generate",
    "load",
    "load_config",
    "make_mesh",
}


def test_the_public_names_are_these_and_each_is_there():
    assert set(dir(mm01_jax)) == set(mm01_jax.__all__) == NAMES
    for name in NAMES:
        found = getattr(mm01_jax, name)
        assert found.__name__ == name and found.__doc__


def test_the_stub_of_type_checkers_says_the_same():
    stub = ast.parse((ROOT / "mm01_jax/__init__.pyi").read_text(encoding="utf-8"))
    assert all(isinstance(node, ast.ImportFrom) for node in stub.body)
    said = {alias.asname: (node.module, alias.name) for node in stub.body for alias in node.names}
    assert said.keys() == NAMES
    for name, (module, original) in said.items():
        assert name == original and getattr(importlib.import_module(module), name) is getattr(mm01_jax, name)


def test_an_unknown_name_is_an_attribute_error_that_lists_them():
    with pytest.raises(AttributeError, match=r"no attribute 'Confg'; public names: .*Config"):
        mm01_jax.Confg  # noqa: B018
    assert not hasattr(mm01_jax, "lod")


def test_so_is_one_that_is_imported_though_python_would_hide_the_list():
    with pytest.raises(ImportError, match=r"no attribute 'lod'; public names: .*load_config"):
        from mm01_jax import lod  # noqa: F401
    from mm01_jax import train

    assert train.__name__ == "mm01_jax.train"


def test_no_module_has_a_public_name():
    """`from mm01_jax import generate` would be the module once something had imported it."""
    taken = [name for name in modules() if inside(name, "mm01_jax") and name.rpartition(".")[2] in NAMES]
    assert not taken


def test_init_imports_nothing_of_ours_when_it_is_imported():
    path = modules()["mm01_jax"]
    imported = [ast.unparse(node) for node in tree(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imported == ["import importlib", "import sys"]
