"""Runs a notebook as a reader would: every cell, in a folder and a kernel of its own."""

import os
import pathlib
from collections.abc import Mapping

import nbformat
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
_CELL_SECONDS = 600


def run(
    name: str,
    folder: pathlib.Path,
    *,
    fast: bool,
    environment: Mapping[str, str] | None = None,
    kernel: str = "python3",
) -> nbformat.NotebookNode:
    """The notebook of this name with its outputs.

    Args:
      folder: where it runs and leaves its files. fast: with the switch that makes runs and sequences short.
      environment: beside this process's own; without it the kernel imports this checkout. kernel: as Jupyter knows it.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed; its source and what it said are in the message.
    """
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | (environment or {"PYTHONPATH": path}) | {"MM01_FAST": str(int(fast))}
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=_CELL_SECONDS, kernel_name=kernel, resources=where)
    return client.execute(env=environment)
