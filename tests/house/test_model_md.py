"""Comments that cite docs/model.md cite what stands there."""

import re

from tests.house.checkout import ROOT, files

PAGE = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")
PLACE = r"(?:D[1-9]\d?|[0A-H](?:\.\d+)?)(?![\w.]*\w)"
CITED = re.compile(rf"model\.md ((?:{PLACE})(?:, (?:{PLACE}))*)")
ROW = re.compile(r"\bD[1-9]\d?\b")  # a known difference, by its number alone
TEXT = {".py", ".md", ".toml"}


def texts() -> dict[str, str]:
    """Path -> text of every file that may cite the page, but the page and this test; lines joined."""
    found = {path.relative_to(ROOT).as_posix(): path for path in files() if path.suffix in TEXT}
    others = {"docs/model.md", "tests/house/test_model_md.py"}
    kept = {name: path.read_text(encoding="utf-8") for name, path in found.items() if name not in others}
    return {name: re.sub(r"\s*\n[\s#]*", " ", text) for name, text in kept.items()}


def places() -> set[str]:
    """Sections, by the first word of a heading, and rows of the table of differences."""
    headings = re.findall(r"^#{2,3} ([0A-H](?:\.\d+)?) ", PAGE, flags=re.MULTILINE)
    rows = re.findall(r"^\| (D\d+) \|", PAGE, flags=re.MULTILINE)
    assert len(headings) == len(set(headings)) and rows == [f"D{i}" for i in range(1, len(rows) + 1)]
    return {*headings, *rows}


def test_every_cited_section_of_model_md_exists():
    cited = {
        (name, place) for name, text in texts().items() for run in CITED.findall(text) for place in run.split(", ")
    }
    assert len(cited) > 30
    assert not sorted((name, place) for name, place in cited if place not in places())


def test_every_difference_that_is_named_by_its_number_exists():
    named = {(name, row) for name, text in texts().items() for row in ROW.findall(text)}
    assert len(named) > 5
    assert not sorted((name, row) for name, row in named if row not in places())


def test_every_citation_is_read_and_none_is_of_another_document():
    """Each "model.md" that a capital letter or digit follows is of the form that the test above reads."""
    other = re.compile(r"(?<![.\w])spec,? (?:[0A-H]\b|D\d|table)")
    for name, text in texts().items():
        assert not other.search(text), name
        assert len(re.findall(r"model\.md [A-Z0-9]", text)) == len(CITED.findall(text)), name


def test_every_file_that_the_page_names_exists():
    paths = set(re.findall(r"`((?:mm01_jax|tests|configs)/[\w/.]+)`", PAGE))
    paths |= {f"docs/{link}" for link in re.findall(r"\]\(([\w./]+)", PAGE)}
    assert len(paths) > 15 and not [path for path in paths if not (ROOT / path).exists()]
