"""Every measured number of the README and of docs/numbers.md stands in a file of results."""

import re
import xml.etree.ElementTree

import pytest

from benchmarks import facts, picture, results, tables

PAGES = ("README.md", "docs/numbers.md")
# What makes a number a measured one: a unit of time, speed, memory or share behind it, or a power of ten (an error).
# Sizes of models, counts of tokens and versions have none of these.
UNITS = r"ms|s|min|h|tokens/s|[KMGT]i?B(?:/s)?|[GMT]FLOPs?(?:/s)?|nats|%"
NUMBER = re.compile(rf"(?<![\w.,])(\d[\d,]*(?:\.\d+)?(?:e-?\d+)?)(?: ?({UNITS})(?![\w/]))?")


def measured(text: str) -> list[tuple[str, str]]:
    """(number, unit) of each measured number in a text, code left out."""
    plain = re.sub(r"```.*?```|`[^`]*`|<!--.*?-->|\]\([^)]*\)", " ", text, flags=re.DOTALL)
    return [(number, unit) for number, unit in NUMBER.findall(plain) if unit or "e" in number]


def known() -> dict[str, list[float]]:
    """Unit -> the numbers of all results that have it, and each number under "" too."""
    found: dict[str, list[float]] = {"": [], "%": []}
    for file in (tables.ROOT / "benchmarks" / "results").glob("*.json"):
        for row in results.read(file):
            for unit, value in facts.numbers(row):
                found.setdefault(unit, []).append(value)
                found[""].append(value)
    return found


def is_known(number: str, unit: str, found: dict[str, list[float]]) -> bool:
    """Whether a number as it is printed is one of these, rounded."""
    form = f".{len(number.partition('e')[0].partition('.')[2])}" + ("e" if "e" in number else "f")
    return any(float(format(value, form)) == float(number.replace(",", "")) for value in found.get(unit, []))


@pytest.mark.parametrize("page", PAGES)
def test_every_measured_number_stands_in_a_file_of_results(page):
    numbers, found = measured((tables.ROOT / page).read_text(encoding="utf-8")), known()
    assert len(numbers) >= 5
    assert not [(number, unit) for number, unit in numbers if not is_known(number, unit, found)]


def test_a_number_that_was_not_measured_is_found_out():
    found = known()
    assert is_known("198,781", "tokens/s", found) and not is_known("198,782", "tokens/s", found)
    assert is_known("2.79", "ms", found) and not is_known("2.79", "s", found) and not is_known("2.7713", "ms", found)
    assert measured("of 456 B parameters, 4 rows of 8,192 tokens, jax 0.12.0.1: 3.1 ms, 5e-07, `7 s`, 2,048 chips") == [
        ("3.1", "ms"),
        ("5e-07", ""),
    ]


@pytest.mark.parametrize("page", PAGES)
def test_cells_are_short(page):
    lines = (tables.ROOT / page).read_text(encoding="utf-8").splitlines()
    cells = [cell.strip() for line in lines if line.startswith("| ") for cell in re.split(r"(?<!\\)\|", line)]
    assert not [cell for cell in cells if len(re.sub(r"\]\([^)]*\)", "]", cell)) > 100]


def test_the_readme_is_a_page():
    assert len((tables.ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_picture_is_what_its_rows_draw():
    assert picture.PICTURE.read_text(encoding="utf-8") == picture.drawn(), "run `python -m benchmarks.picture`"
    assert xml.etree.ElementTree.fromstring(picture.drawn()).tag.endswith("svg")


def test_a_fact_is_a_line_with_its_peers_and_where_it_comes_from(tmp_path):
    origin = {
        "device": "a chip",
        "versions": {"jax": "1.2"},
        "commit": None,
        "command": "make it",
        "date": "2026-01-02",
    }
    rows = [results.Row(what="op: forward", value=value, unit="ms", floor=1.0, **origin) for value in (2.04, 1.96)]
    rows += [results.Row(what="op: forward", value=3.0, peer="xla", **origin)]
    rows += [results.Row(what="op: copied", value=1.5, **origin)]
    results.write(tmp_path / "rows.json", rows)
    made = facts.table(tmp_path, "from: rows.json\nfact: an op | op: forward | {:.1f} ms | a copy = op: copied")
    assert made.splitlines()[2] == (
        "| an op | 2.0 ms | plain XLA 3.0; a copy 1.5; 49% of the floor | a chip | jax 1.2 | 2026-01-02 | `make it` |"
    )
    for wrong, said in {
        "from: rows.json\nfact: a | op: backward | {}": "no row 'op: backward'",
        "columns: when": "no column 'when'",
        "facts: a": "begins with neither",
    }.items():
        with pytest.raises(ValueError, match=said):
            facts.table(tmp_path, wrong)
