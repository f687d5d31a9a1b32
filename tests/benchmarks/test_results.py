"""Rows of results: what is written is read, what is measured again is replaced, and tables are what rows make."""

import re

import pytest

from benchmarks import results, tables

ORIGIN = {"device": "a chip", "versions": {"jax": "1.2"}, "commit": None, "command": "a command"}


def row(what: str, value, **fields) -> results.Row:
    return results.Row(what=what, value=value, **(ORIGIN | fields))


def test_rows_are_read_as_they_were_written(tmp_path):
    rows = [row("one: forward", 1.5, unit="ms", floor=1.0), row("one: forward", 2, peer="xla"), row("two: said", "–")]
    results.write(tmp_path / "rows.json", rows)
    assert results.read(tmp_path / "rows.json") == rows
    assert len((tmp_path / "rows.json").read_text().splitlines()) == len(rows) + 2


def test_a_row_with_a_wrong_field_is_refused_by_file_and_number(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text('[{"what": "no quantity"}]')
    with pytest.raises(ValueError, match=r"rows\.json: row 0: .*missing"):
        results.read(file)
    with pytest.raises(ValueError, match="subject: quantity"):
        row("no quantity", 1)


def test_a_report_replaces_what_it_measured_and_keeps_the_rest_in_place(tmp_path):
    file = tmp_path / "rows.json"
    before = [row("one: s", 1), row("one: t", 2), row("two: s", 3), row("one: s", 4, device="another")]
    results.write(file, before)
    report = results.Report(file, "benchmarks.x", ["--steps=2", f"--json={file}"], label="")
    report.add("one: s", 10, device="a chip")
    report.add("three: s", 11, device="a chip")
    found = results.read(file)
    assert [(r.what, r.value) for r in found] == [("one: s", 10), ("two: s", 3), ("one: s", 4), ("three: s", 11)]
    assert found[0].command == "python -m benchmarks.x --steps=2"
    assert {"jax", "jaxlib", "numpy"} <= found[0].versions.keys()


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    rows = [row("shape 1: forward", 2.0, floor=1.0), row("shape 1: forward", 3.0, peer="xla")]
    rows += [row("shape 2: forward", 4.0), row("shape 2: forward", 5.0), row("other: s", 1)]
    results.write(tmp_path / "rows.json", rows)
    return "rows.json"


def test_a_table_has_a_line_for_each_subject_and_an_empty_cell_for_what_it_lacks(file):
    cells = "| {n}, jax {jax version} | {forward:.1f} | {forward of floor:.0%} | {forward xla/ours:.2f} |"
    made = tables.made(file, f"title: | a | b | c | d |\nrows: shape (?P<n>.*)\ncells: {cells}\n")
    assert made.splitlines() == [
        "| a | b | c | d |",
        "|---|---|---|---|",
        "| 1, jax 1.2 | 2.0 | 50% | 1.50 |",
        "| 2, jax 1.2 | 4.0, 5.0 |  |  |",
    ]


@pytest.mark.parametrize(
    ("description", "refusal"),
    [
        ("rows: shap .*\ncells: | {forward} |", "no subject matches 'shap"),
        ("rows: shape .*\ncells: | {backward} |", "has no 'backward'"),
        ("lines: shape .*", "begins with neither"),
    ],
)
def test_a_table_that_cannot_be_made_says_why(file, description, refusal):
    with pytest.raises(ValueError, match=refusal):
        tables.made(file, description)


def test_rows_of_two_devices_do_not_share_a_line(file, tmp_path):
    results.write(tmp_path / "rows.json", [row("one: s", 1), row("one: t", 4, device="another")])
    with pytest.raises(ValueError, match="measured on a chip and another"):
        tables.made(file, "rows: one\ncells: | {s} |")


def test_every_committed_table_is_what_its_rows_make():
    pages = tables.pages()
    assert {"benchmarks/mesh.md", "docs/plans.md"} <= pages.keys()
    for name, path in pages.items():
        assert tables.remade(path.read_text()) == path.read_text(), f"{name}: run `python -m benchmarks.tables {name}`"


def test_every_committed_file_of_rows_is_in_a_table():
    files = {path.relative_to(tables.ROOT).as_posix() for path in (tables.ROOT / "benchmarks/results").glob("*.json")}
    blocks = [found for path in tables.pages().values() for found in tables.BLOCK.findall(path.read_text())]
    shown = {source for _, source, *_ in blocks}
    shown |= {
        f"benchmarks/results/{name}"
        for _, _, text, *_ in blocks
        for name in re.findall(r"^from: (\S+\.json)", text, re.M)
    }
    assert files and files <= shown
    for file in files:
        assert results.read(tables.ROOT / file)
