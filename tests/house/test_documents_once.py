"""What a document is stands in one place, and docs/documents.md names every place that compares ids."""

import ast
import pathlib
import re

from tests.house.checkout import ROOT, inside, modules, tree

FILES = [path for name, path in sorted(modules().items()) if inside(name, ("mm01_jax", "pallas_kernels"))]
PAGE = (ROOT / "docs" / "documents.md").read_text()
IDS = re.compile(r"segment|document|open_")  # how names of ids are spelt


def comparisons(path: pathlib.Path) -> list[str]:
    """`x == y` and `x != y` of two ids."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
            sides = (ast.unparse(node.left), ast.unparse(node.comparators[0]))
            if all(IDS.search(side) for side in sides):
                found.append(ast.unparse(node))
    return found


def named(heading: str) -> set[str]:
    """The files in the table after a line of the page."""
    table = PAGE.split(heading)[1].split("|---|---|\n")[1].split("\n\n")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE))


def test_the_page_names_every_place_that_compares_ids():
    places = {path.relative_to(ROOT).as_posix() for path in FILES if comparisons(path)}
    assert places == named("Where two ids are compared")


def test_only_the_definition_and_its_oracle_look_for_a_change_of_id():
    changes = {path.relative_to(ROOT).as_posix() for path in FILES if any("!=" in text for text in comparisons(path))}
    assert changes == {"pallas_kernels/documents.py", "pallas_kernels/lightning_attention/reference.py"}


def test_every_file_that_the_page_names_exists():
    paths = set(re.findall(r"`([\w/]+\.py)`", PAGE))
    assert len(paths) > 10 and not [path for path in paths if not (ROOT / path).is_file()]
