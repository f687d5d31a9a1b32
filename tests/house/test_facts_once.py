"""Each fact in one place: what was written in several files once, and would be again."""

import ast
import functools
import pathlib
import re
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parents[2]


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Path -> tree of every file of the library but the oracles, which share no line with what they judge."""
    paths = (path for room in ("mm01_jax", "pallas_kernels") for path in (ROOT / room).rglob("*.py"))
    paths = (path for path in paths if path.name != "reference.py")
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def places(says: Callable[[ast.AST], bool]) -> list[str]:
    """The file of every node that says it, a file as often as it has one."""
    return [path for path, tree in sorted(trees().items()) for node in ast.walk(tree) if says(node)]


def stems(node: ast.AST) -> set[str]:
    """Names in an expression without their axes: out of out_BSNH."""
    return {re.sub("_[A-Z]+$", "", inner.id) for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def test_the_precision_of_a_product_is_chosen_in_one_place():
    def highest(node):
        in_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.lower() == "highest"
        return in_text or (isinstance(node, ast.Attribute) and node.attr == "HIGHEST")

    assert places(highest) == ["pallas_kernels/precision.py"]


def test_an_array_is_cast_to_vary_over_mesh_axes_in_one_place():
    def cast(node):
        name = getattr(node, "attr", getattr(node, "id", ""))
        return isinstance(node, ast.Attribute | ast.Name) and name in ("pcast", "pvary")

    assert places(cast) == ["pallas_kernels/varying.py"]


def test_delta_of_the_softmax_gradient_is_computed_in_one_place():
    def product(node):
        """d_out * out, in whatever dtypes."""
        if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
            return False
        left, right = stems(node.left), stems(node.right)
        return ("d_out" in left and "out" in right) or ("out" in left and "d_out" in right)

    assert places(product) == ["pallas_kernels/softmax_attention/api.py"]


def test_gpu_kernels_name_what_they_are_given_by_fields_not_by_strings():
    def keyed(node):
        key = node.slice if isinstance(node, ast.Subscript) else None
        return isinstance(key, ast.Constant) and isinstance(key.value, str)

    assert not [path for path in places(keyed) if pathlib.Path(path).name.startswith("gpu")]
