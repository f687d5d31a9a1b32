"""The first cell, which runs before anything is installed: what it refuses, and what it would install."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.notebooks import running


def source() -> str:
    cells = json.loads(running.NOTEBOOKS["train_tiny"].read_text(encoding="utf-8"))["cells"]
    return "".join(next(cell for cell in cells if cell["cell_type"] == "code")["source"])


def definitions() -> str:
    return source().split("\nif sys.version_info")[0]


def run(code: str, folder: pathlib.Path, *options: str, **environment: str) -> subprocess.CompletedProcess:
    changed = os.environ | {"MM01_WHEEL": "", "PYTHONPATH": str(running.ROOT)} | environment
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, cwd=folder, env=changed, capture_output=True, text=True, check=False)


def test_without_an_address_or_a_wheel_the_cell_says_what_to_set(tmp_path):
    done = run(source(), tmp_path, "-I", "-S")  # a Python without any package
    assert done.returncode and done.stderr.startswith("REPO names no address yet")


def test_a_jax_that_was_imported_before_the_installed_one_asks_for_a_restart(tmp_path):
    old = 'import sys, types\nsys.modules["jax"] = types.SimpleNamespace(__version__="0.7.2")\n'
    done = run(old + source(), tmp_path)
    assert done.returncode and done.stderr.startswith("RESTART NEEDED, jax had been imported before")


def test_what_is_here_already_is_left_alone_and_told(tmp_path):
    done = run(source(), tmp_path, JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mm01_jax is here already: nothing was installed\nPython 3.")
    assert "CPU: plain XLA computes everything" in done.stdout


@pytest.mark.parametrize(
    ("driver", "jax"), [("570.86.15", "jax[cuda12]"), ("580.65.06", "jax[cuda13]"), ("", "jax[cuda12]")]
)
def test_cuda_is_chosen_by_the_driver(driver, jax, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho {driver}\n")
    program.chmod(0o755)
    where = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = run(definitions() + "\nprint(jax_for('gpu'), jax_for('tpu'), jax_for('cpu'))", tmp_path, PATH=where)
    assert done.stdout.split() == [jax, "jax[tpu]", "jax"], done.stderr


def test_a_wheel_beside_the_notebook_is_taken(tmp_path):
    (tmp_path / "mm01_jax-0.0.1-py3-none-any.whl").touch()
    pretend = "\npip = lambda *arguments: print(arguments)\ninstall()"
    done = run(definitions() + pretend, tmp_path, "-I", "-S")
    assert "mm01_jax-0.0.1-py3-none-any.whl[plots]" in done.stdout, done.stderr
