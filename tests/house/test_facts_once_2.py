"""Facts stand in one place (two): the abstract model, exit codes, MFU, axes of weights, what depends on a mixer's kind.

Counted in the syntax trees of the package; `tests` may say a fact again to check it.
"""

import ast
import functools
import pathlib
import typing

from mm01_jax.config import MixerKind
from mm01_jax.model import abstract, mixers

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = [*sorted((ROOT / "mm01_jax").rglob("*.py")), ROOT / "train_main.py"]
KINDS = set(typing.get_args(MixerKind))
# Logical axes that weights alone have: activations share the others.
WEIGHT_AXES = {"embed", "vocab", "ffn", "kv_heads", "expert", "act_embed", "head_dim", "heads"}


@functools.cache
def tree(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def places(found) -> set[str]:
    """Files with a node that `found` is true of."""
    return {name(path) for path in PACKAGE if any(found(node) for node in ast.walk(tree(path)))}


def called(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def test_a_model_is_made_abstract_in_one_place():
    """Shapes with shardings; `active_weights` counts shapes alone, without a mesh."""

    def evaluates_a_model(node: ast.AST) -> bool:
        return called(node).endswith("eval_shape") and "Model(" in ast.unparse(node)

    def places_what_it_evaluated(node: ast.AST) -> bool:
        """A function that calls both."""
        inside = {called(x).split(".")[-1] for x in ast.walk(node)} if isinstance(node, ast.FunctionDef) else set()
        return {"eval_shape", "ShapeDtypeStruct"} <= inside

    assert places(evaluates_a_model) == {"mm01_jax/model/flops.py"}
    assert places(places_what_it_evaluated) == {"mm01_jax/model/abstract.py"}
    assert abstract.abstract.__module__ == "mm01_jax.model.abstract"


def test_errors_become_exit_codes_in_one_place():
    """An error says its own code; one function turns it into the process's."""

    def catches_and_returns_a_number(node: ast.AST) -> bool:
        returned = [x.value for x in ast.walk(node) if isinstance(x, ast.Return)]
        numbers = [x for x in returned if isinstance(x, ast.Constant) and type(x.value) is int]
        return isinstance(node, ast.ExceptHandler) and bool(numbers)

    def reads_exit_code(node: ast.AST) -> bool:
        return called(node) == "getattr" and "'exit_code'" in ast.unparse(node)

    def runs_a_command(node: ast.AST) -> bool:
        return called(node) == "command.run"

    assert places(catches_and_returns_a_number) == set()
    assert places(reads_exit_code) == {"mm01_jax/command.py"}
    commands = {name(path) for path in PACKAGE if path.name == "__main__.py"} | {"train_main.py"}
    assert len(commands) == 5 and places(runs_a_command) == commands


def test_model_flops_utilisation_is_computed_in_one_place():
    def divides_by_a_peak(node: ast.AST) -> bool:
        return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and "peak" in ast.unparse(node.right)

    def defines_it(node: ast.AST) -> bool:
        return isinstance(node, ast.FunctionDef) and node.name == "mfu" and "/" in ast.unparse(node)

    def asks(node: ast.AST) -> bool:
        return called(node) == "mfu"

    # The planner's own `mfu` asks with its own seconds; the memory report divides bytes at the peak by GiB.
    assert places(divides_by_a_peak) == {"mm01_jax/model/flops.py"}
    assert places(defines_it) == {"mm01_jax/model/flops.py", "mm01_jax/plan/planner.py"}
    assert places(asks) == {"mm01_jax/train/loop.py", "mm01_jax/plan/planner.py"}


def test_axes_of_weights_stand_in_the_model_s_param_lines_alone():
    """A tuple of logical axes with a weight's among them, outside the rules' own vocabulary (tests/config)."""

    def lists_axes(node: ast.AST) -> bool:
        parts = node.elts if isinstance(node, ast.Tuple | ast.List) else []
        words = {x.value for x in parts if isinstance(x, ast.Constant) and isinstance(x.value, str)}
        return len(words & WEIGHT_AXES) >= 2

    rooms = {place.rsplit("/", 1)[0] for place in places(lists_axes) - {"mm01_jax/config/mesh.py"}}
    assert rooms == {"mm01_jax/model"}


def test_nothing_outside_the_tables_asks_which_mixer_it_is():
    """No comparison with a mixer's kind; tables keyed by it stand where the kinds are described."""

    def compares(node: ast.AST) -> bool:
        values = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        return bool({x.value for x in values if isinstance(x, ast.Constant) and isinstance(x.value, str)} & KINDS)

    def keyed(node: ast.AST) -> bool:
        keys = node.keys if isinstance(node, ast.Dict) else []
        return bool({x.value for x in keys if isinstance(x, ast.Constant) and isinstance(x.value, str)} & KINDS)

    assert places(compares) == set()
    assert places(keyed) == {
        "mm01_jax/model/mixers.py",  # what runs
        "mm01_jax/convert/table.py",  # what the released files call it
        "mm01_jax/convert/certify/walk.py",  # what NumPy computes
    }
    assert mixers.MIXERS.keys() == KINDS


def test_evaluation_and_inference_import_nothing_of_training():
    def imports_training(node: ast.AST) -> bool:
        return isinstance(node, ast.ImportFrom | ast.Import) and "mm01_jax.train" in ast.unparse(node)

    below = {place for place in places(imports_training) if not place.startswith("mm01_jax/train/")}
    assert below == {"train_main.py", "mm01_jax/plan/steps.py"}


def test_a_batch_is_one_type():
    def defines(node: ast.AST) -> bool:
        if isinstance(node, ast.ClassDef):
            return node.name == "Batch"
        return isinstance(node, ast.Assign) and any(ast.unparse(target) == "Batch" for target in node.targets)

    assert places(defines) == {"mm01_jax/data/batch.py"}
