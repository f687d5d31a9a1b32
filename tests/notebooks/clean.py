"""Runs the notebooks in a new environment that has Jupyter and nothing else, as a hosted runtime has.

    python -m tests.notebooks.clean                                     # all, whole
    python -m tests.notebooks.clean --python=python3.13 train_tiny      # with another Python
    python -m tests.notebooks.clean --write                             # keeps the outputs, without our paths

What the first cell installs is the wheel of this checkout (MM01_WHEEL), with what it needs from the network. It is how
the outputs in notebooks/ were made.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import nbformat

from tests.command_line import Parser, one_of
from tests.house import installed
from tests.notebooks import running

_KERNEL = "clean"


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("tests.notebooks.clean", __doc__)
    allowed = ", ".join(running.NOTEBOOKS)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", type=one_of("notebook", running.NOTEBOOKS), help=f"{allowed}; or all"
    )
    parser.add_argument("--python", default=sys.executable, help="the Python that the environment is made with")
    parser.add_argument("--fast", action="store_true", help="with the switch that makes runs short")
    parser.add_argument("--write", action="store_true", help="keep the outputs in notebooks/")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        wheel = installed.build(folder, sys.executable)
        for name in given.names or running.NOTEBOOKS:
            _run(name, folder, wheel, given)


def _run(name: str, folder: pathlib.Path, wheel: pathlib.Path, given: argparse.Namespace) -> None:
    """Each notebook in an environment of its own: its own first cell must install what it needs."""
    prefix, work = folder / f"venv-{name}", folder / f"work-{name}"
    work.mkdir()
    python = prefix / "bin" / "python"
    subprocess.run([given.python, "-m", "venv", prefix], check=True)
    for command in (("pip", "install", "ipykernel"), ("ipykernel", "install", "--prefix", prefix, "--name", _KERNEL)):
        subprocess.run([python, "-m", *command], check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    os.environ["JUPYTER_PATH"] = str(prefix / "share" / "jupyter")
    environment = {"PYTHONPATH": "", "MM01_WHEEL": str(wheel), "HOME": str(work), "JAX_PLATFORMS": "cpu"}
    began = time.monotonic()
    notebook = running.run(name, work, fast=given.fast, environment=environment, kernel=_KERNEL)
    version = subprocess.run([python, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    print(f"{name}: {version}, {time.monotonic() - began:.0f} s with its installation", flush=True)
    if given.write:
        nbformat.write(
            _cleaned(notebook, {str(python): "python", f"{work}/": "", str(work): "."}), running.NOTEBOOKS[name]
        )


def _cleaned(notebook: nbformat.NotebookNode, replaced: dict[str, str]) -> nbformat.NotebookNode:
    """Without paths of this machine and times of cells; printed lines in one piece, without what a bar overwrote."""
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
            for output in cell.outputs:
                for old, new in replaced.items():
                    if "text" in output:
                        output.text = output.text.replace(old, new)
    return notebook


def _joined(outputs: list) -> list:
    joined = []
    for output in outputs:
        if output.output_type == "stream":
            output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
        if joined and output.output_type == joined[-1].output_type == "stream" and output.name == joined[-1].name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


if __name__ == "__main__":
    main()
