"""Small on purpose: a file has at most 300 lines, a function 40, a kernel 80; the exceptions are named with reasons."""

import ast
import pathlib

from tests.house.checkout import ROOT, modules, tree

FILE_LINES, FUNCTION_LINES, KERNEL_LINES, POSITIONAL = 300, 40, 80, 6
Function = ast.FunctionDef | ast.AsyncFunctionDef

# "path" or "path:function" -> why it is longer. An exception that is no longer needed fails too.
EXCEPTIONS: dict[str, str] = {}


def test_files_and_functions_stay_within_their_budget():
    over = {}
    for path in modules().values():
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        lines = len(text.splitlines())
        if lines > FILE_LINES:
            over[name] = f"{lines} lines of {FILE_LINES}"
        for node in _functions(path):
            if _lines(node) > _budget(name, text):
                over[f"{name}:{node.name}"] = f"{_lines(node)} lines of {_budget(name, text)}"
    unnamed = {key: found for key, found in over.items() if key not in EXCEPTIONS}
    assert not unnamed, "\n".join(["over budget:", *(f"{key}: {found}" for key, found in unnamed.items())])
    assert not EXCEPTIONS.keys() - over.keys(), "exceptions that are no longer needed"


def test_functions_take_at_most_six_positional_arguments():
    over = []
    for path in modules().values():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("pallas_kernels/"):
            continue  # an op has as many operands as its equation
        for node in _functions(path):
            taken = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
            many = len([argument for argument in taken if argument not in ("self", "cls")]) > POSITIONAL
            if many and f"{name}:{node.name}" not in EXCEPTIONS:
                over.append(f"{name}:{node.name}({', '.join(taken)})")
    assert not over, "\n".join(over)


def _functions(path: pathlib.Path) -> list[Function]:
    return [node for node in ast.walk(tree(path)) if isinstance(node, Function)]


def _lines(node: Function) -> int:
    """Lines from `def` to the end; the docstring, which states shapes and errors, is free."""
    first = node.body[0]
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = first.end_lineno - first.lineno + 1 if has_docstring and isinstance(first.value.value, str) else 0
    return node.end_lineno - node.lineno + 1 - docstring


def _budget(name: str, text: str) -> int:
    is_kernel = name.startswith("pallas_kernels/") and "import pallas" in text
    return KERNEL_LINES if is_kernel else FUNCTION_LINES
