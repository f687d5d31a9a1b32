"""Every notebook runs from its first cell to its last, and the outputs that lie in it are of such a run."""

import base64
import json
import re

import pytest

from tests.notebooks import running
from tests.slow import slow_but

PATHS = tuple(running.NOTEBOOKS.values())
MOST_BYTES = 400_000
IS_PATH = re.compile(r"(?<![\w.:/])/(?:root|home|tmp|Users|work|usr|opt|content|private)/")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")


@pytest.fixture(params=running.NOTEBOOKS)
def cells(request):
    return json.loads(running.NOTEBOOKS[request.param].read_text(encoding="utf-8"))["cells"]


def code_of(cells: list[dict]) -> list[dict]:
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", slow_but(("train_tiny",), running.NOTEBOOKS))
def test_notebook_runs_with_its_fast_switch(name, tmp_path):
    running.run(name, tmp_path, fast=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", running.NOTEBOOKS)
def test_notebook_runs_whole(name, tmp_path):
    running.run(name, tmp_path, fast=False)


def test_outputs_are_of_one_whole_run_without_an_error(cells):
    code = code_of(cells)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert any(cell["outputs"] for cell in code)
    assert not [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]


def test_outputs_name_no_place_of_the_machine_they_were_made_on(cells):
    for cell in code_of(cells):
        for output in cell["outputs"]:
            said = [
                output.get("text", ""),
                *(v for k, v in output.get("data", {}).items() if not k.startswith("image/")),
            ]
            assert not IS_PATH.search("".join("".join(text) for text in said)), said


@pytest.mark.parametrize("name", running.NOTEBOOKS)
def test_notebook_is_small_and_begins_with_its_own_badge_for_a_tpu(name):
    text = running.NOTEBOOKS[name].read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert len(text) <= MOST_BYTES
    assert notebook["metadata"]["accelerator"] == "TPU" and notebook["metadata"]["colab"]["gpuType"] == "V5E1"
    badge = "".join(notebook["cells"][0]["source"])
    assert (
        f"](https://colab.research.google.com/github/{repo(notebook['cells'])}/blob/main/notebooks/{name}.ipynb)"
        in badge
    )


def repo(cells: list[dict]) -> str:
    return re.search(r'^REPO = "(.*?)"', "".join(code_of(cells)[0]["source"]), re.MULTILINE)[1]


def test_all_notebooks_have_the_same_first_cell():
    firsts = {tuple(code_of(json.loads(path.read_text(encoding="utf-8"))["cells"])[0]["source"]) for path in PATHS}
    assert len(firsts) == 1


def test_links_lead_to_files(cells):
    for cell in cells:
        if cell["cell_type"] == "markdown":
            for target in LINK.findall("".join(cell["source"])):
                assert (running.ROOT / "notebooks" / target).exists(), target


def test_pictures_are_small(cells):
    for cell in code_of(cells):
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                assert len(base64.b64decode("".join(output["data"]["image/png"]))) <= 100_000
