"""Every bench and drill says what it does with --help and refuses a wrong argument in one line, before it works."""

import ast
import contextlib
import importlib
import io
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# They make pages of rows, pictures, and what a person looks at.
WITHOUT_ROWS = (
    *("benchmarks.tables", "benchmarks.picture", "benchmarks.train_lengths", "benchmarks.train_vl.answers"),
    "benchmarks.serve_random",
)
# Programs that a test starts, with arguments of its own, and this file, which has the words in it.
STARTED_BY_TESTS = (
    "tests.convert.peer",
    "tests.faults.forked",
    "tests.inference.answering",
    "tests.inference.engine.several",
    "tests.benchmarks.test_benchmark_commands",
)


def tracked(*patterns: str) -> list[pathlib.Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [ROOT / name for name in listed if (ROOT / name).exists()]


def commands() -> list[str]:
    """Modules under benchmarks/ and tests/ that a person can run."""
    paths = [
        path for path in tracked("benchmarks/*.py", "tests/*.py") if 'if __name__ == "__main__":' in path.read_text()
    ]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name for name in names if name not in STARTED_BY_TESTS]


def said(module: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, run in this process."""
    main, out, err = importlib.import_module(module).main, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code, out.getvalue(), err.getvalue()


def test_every_command_is_found():
    assert {
        "benchmarks.kernels.__main__",
        "benchmarks.mesh",
        "tests.faults.train_faults",
        "tests.golden.train_curve",
    } <= {*commands()}
    assert len(commands()) >= 20


def test_every_bench_and_drill_answers_help():
    for module in commands():
        code, out, _ = said(module, "--help")
        assert code == 0, module
        assert out.startswith(f"usage: python -m {module.removesuffix('.__main__')} "), out


def test_every_bench_and_drill_refuses_an_unknown_flag_in_one_line():
    for module in commands():
        code, out, err = said(module, "--hlep")
        assert (code, out, err.count("\n")) == (2, "", 1), (module, err)


def test_every_bench_takes_a_file_for_its_rows_and_refuses_one_that_is_none(tmp_path):
    (tmp_path / "other.json").write_text("{}}")
    for module in commands():
        if module.startswith("benchmarks.") and module not in WITHOUT_ROWS:
            for file, refusal in (("missing/rows.json", "no directory"), ("other.json", "holds no rows")):
                code, _, err = said(module, f"--json={tmp_path / file}")
                assert (code, err.count("\n")) == (2, 1) and refusal in err, (module, err)


def test_nothing_outside_tests_benchmarks_imports_the_benches():
    importers = []
    for path in tracked("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(("benchmarks/", "tests/benchmarks/")) or name == "tests/faults/__main__.py":  # writes rows
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            named = isinstance(node, ast.Constant) and str(node.value).startswith("benchmarks.")
            if named or any(module.split(".")[0] == "benchmarks" for module in modules):
                importers.append(name)
    assert not importers
