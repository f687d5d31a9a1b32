"""Small on purpose: a file has at most 300 lines, a function 40, a kernel 80; the exceptions are named with reasons."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
ROOMS = ("configs", "mm01_jax", "pallas_kernels", "tests", "benchmarks")
FILES = sorted([path for room in ROOMS for path in (ROOT / room).rglob("*.py")] + list(ROOT.glob("*.py")))

FILE_LINES, FUNCTION_LINES, KERNEL_LINES, POSITIONAL = 300, 40, 80, 6

# "path" or "path:function" -> why it is longer. An exception that is no longer needed fails too.
EXCEPTIONS: dict[str, str] = {}


def test_files_and_functions_stay_within_their_budget():
    over = {}
    for path in FILES:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        lines = len(text.splitlines())
        if lines > FILE_LINES:
            over[name] = f"{lines} lines of {FILE_LINES}"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _lines(node) > _budget(name, text):
                over[f"{name}:{node.name}"] = f"{_lines(node)} lines of {_budget(name, text)}"
    unnamed = {key: found for key, found in over.items() if key not in EXCEPTIONS}
    assert not unnamed, "\n".join(["over budget:", *(f"{key}: {found}" for key, found in unnamed.items())])
    assert not EXCEPTIONS.keys() - over.keys(), "exceptions that are no longer needed"


def test_functions_take_at_most_six_positional_arguments():
    over = []
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("pallas_kernels/"):
            continue  # an op has as many operands as its equation
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and f"{name}:{node.name}" not in EXCEPTIONS:
                taken = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
                if len([argument for argument in taken if argument not in ("self", "cls")]) > POSITIONAL:
                    over.append(f"{name}:{node.name}({', '.join(taken)})")
    assert not over, "\n".join(over)


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end; the docstring, which states shapes and errors, is free."""
    first = node.body[0]
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = first.end_lineno - first.lineno + 1 if has_docstring and isinstance(first.value.value, str) else 0
    return node.end_lineno - node.lineno + 1 - docstring


def _budget(name: str, text: str) -> int:
    is_kernel = name.startswith("pallas_kernels/") and "import pallas" in text
    return KERNEL_LINES if is_kernel else FUNCTION_LINES
