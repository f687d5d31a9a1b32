"""Links between pages lead somewhere, pages name files that exist, and the README leads to every page of docs/."""

import re

import pytest

from tests.house.checkout import ROOT, files

PAGES = {path.relative_to(ROOT).as_posix(): path for path in files() if path.suffix == ".md"}
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
NAMED = re.compile(r"`((?:mm01_jax|tests|configs|docs|benchmarks|pallas_kernels)/[\w./]+\w)`")


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    path = PAGES[page]
    for target, anchor in LINK.findall(path.read_text(encoding="utf-8")):
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(found.read_text(encoding="utf-8")), f"{page}: {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page):
    named = NAMED.findall(PAGES[page].read_text(encoding="utf-8"))
    assert not [name for name in named if not (ROOT / name).exists() and not (ROOT / f"{name}.py").exists()]


def test_the_readme_leads_to_every_page():
    text = PAGES["README.md"].read_text(encoding="utf-8")
    linked = {target for target, _ in LINK.findall(text)}
    assert {name for name in PAGES if name.startswith("docs/") and name.count("/") == 1} <= linked
