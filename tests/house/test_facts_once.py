"""Each fact in one place: what was written in several files once, and would be again.

Counted in the syntax trees of the library; tests may say a fact again to check it, and the oracles (`reference.py`)
share no line with what they judge.
"""

import ast
import pathlib
import re
import typing
from collections.abc import Callable

from mm01_jax.config import MixerKind
from mm01_jax.model import mixers
from tests.house.checkout import ROOT, inside, modules, tree

KINDS = set(typing.get_args(MixerKind))
# Logical axes that weights have; activations share some.
WEIGHT_AXES = {"embed", "vocab", "ffn", "kv_heads", "expert", "act_embed", "head_dim", "heads"}
Says = Callable[[ast.AST], bool]


def sources() -> dict[str, ast.Module]:
    """Path -> tree of every file of the library but the oracles."""
    rooms = ("mm01_jax", "pallas_kernels", "train_main")
    paths = (path for name, path in modules().items() if inside(name, rooms) and path.name != "reference.py")
    return {path.relative_to(ROOT).as_posix(): tree(path) for path in paths}


def each_place(says: Says) -> list[str]:
    """The file of every node that says it, a file as often as it has one."""
    return [path for path, tree in sorted(sources().items()) for node in ast.walk(tree) if says(node)]


def places(says: Says) -> set[str]:
    """Files with a node that says it."""
    return set(each_place(says))


def called(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def texts(nodes) -> set[str]:
    """The strings among some nodes."""
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def stems(node: ast.AST) -> set[str]:
    """Names in an expression without their axes: out of out_BSNH."""
    return {re.sub("_[A-Z]+$", "", inner.id) for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def test_the_precision_of_a_product_is_chosen_in_one_place():
    def highest(node):
        in_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.lower() == "highest"
        return in_text or (isinstance(node, ast.Attribute) and node.attr == "HIGHEST")

    assert each_place(highest) == ["pallas_kernels/precision.py"]


def test_an_array_is_cast_to_vary_over_mesh_axes_in_one_place():
    def cast(node):
        name = getattr(node, "attr", getattr(node, "id", ""))
        return isinstance(node, ast.Attribute | ast.Name) and name in ("pcast", "pvary")

    assert each_place(cast) == ["pallas_kernels/varying.py"]


def test_delta_of_the_softmax_gradient_is_computed_in_one_place():
    def product(node):
        """d_out * out, in whatever dtypes."""
        if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
            return False
        left, right = stems(node.left), stems(node.right)
        return ("d_out" in left and "out" in right) or ("out" in left and "d_out" in right)

    assert each_place(product) == ["pallas_kernels/softmax_attention/whole.py"]


def test_gpu_kernels_name_what_they_are_given_by_fields_not_by_strings():
    def keyed(node):
        key = node.slice if isinstance(node, ast.Subscript) else None
        return isinstance(key, ast.Constant) and isinstance(key.value, str)

    assert not [path for path in each_place(keyed) if pathlib.Path(path).name.startswith("gpu")]


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
    commands = {path for path in sources() if path.endswith("__main__.py")}
    assert len(commands) == 10 and places(runs_a_command) == commands


def test_model_flops_utilisation_is_computed_in_one_place():
    def divides_by_a_peak(node: ast.AST) -> bool:
        return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and "peak" in ast.unparse(node.right)

    def defines_it(node: ast.AST) -> bool:
        return isinstance(node, ast.FunctionDef) and node.name == "mfu" and "/" in ast.unparse(node)

    def asks(node: ast.AST) -> bool:
        return called(node) == "mfu"

    # The planner's own `mfu` asks with its own seconds.
    assert places(divides_by_a_peak) == {"mm01_jax/model/flops.py"}
    assert places(defines_it) == {"mm01_jax/model/flops.py", "mm01_jax/plan/planner.py"}
    assert places(asks) == {"mm01_jax/train/loop.py", "mm01_jax/plan/planner.py"}


def test_axes_of_weights_stand_in_the_model_s_param_lines_alone():
    """A tuple of logical axes with a weight's among them, outside the rules' own vocabulary (tests/config)."""

    def lists_axes(node: ast.AST) -> bool:
        parts = node.elts if isinstance(node, ast.Tuple | ast.List) else []
        words = texts(parts)
        return len(words & WEIGHT_AXES) >= 2

    rooms = {place.rsplit("/", 1)[0] for place in places(lists_axes) - {"mm01_jax/config/mesh.py"}}
    assert rooms == {"mm01_jax/model"}


def test_nothing_outside_the_tables_asks_which_mixer_it_is():
    """No comparison with a mixer's kind; tables keyed by it stand where the kinds are described."""

    def compares(node: ast.AST) -> bool:
        values = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        return bool(texts(values) & KINDS)

    def keyed(node: ast.AST) -> bool:
        keys = node.keys if isinstance(node, ast.Dict) else []
        return bool(texts(keys) & KINDS)

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


def test_the_sizes_of_the_experts_buffers_are_computed_in_one_place():
    def makes_them(node: ast.AST) -> bool:
        return isinstance(node, ast.BinOp) and "bound" in stems(node) and isinstance(node.op, ast.Mult)

    def bounds_by_capacity(node: ast.AST) -> bool:
        return isinstance(node, ast.BinOp) and "capacity_factor" in ast.unparse(node)

    assert places(makes_them) == {"mm01_jax/parallel/experts/exchange.py"}
    assert places(bounds_by_capacity) == {"mm01_jax/parallel/experts/router.py"}


def test_over_how_many_devices_an_axis_is_cut_is_computed_in_one_place():
    """A product of the sizes that a mesh's config has."""

    def multiplies_sizes(node: ast.AST) -> bool:
        return called(node) == "math.prod" and "getattr(" in ast.unparse(node)

    assert each_place(multiplies_sizes) == ["mm01_jax/config/schema.py"]


def test_the_names_of_the_mesh_axes_are_listed_in_one_place():
    def lists_them(node: ast.AST) -> bool:
        return isinstance(node, ast.Tuple | ast.List) and texts(node.elts) >= {"data", "expert", "tensor", "sequence"}

    assert each_place(lists_them) == ["mm01_jax/config/schema.py"]
