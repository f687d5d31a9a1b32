"""Makes the tables of the pages from the rows of results.

    python -m benchmarks.tables [PAGE ...] [--check]

A page is written by hand, but for what stands between two comments:

    <!-- table of benchmarks/results/meshes.json
    title: | mesh | logits | seconds |
    rows: (?P<mesh>.*)
    cells: | {mesh} | {logits:.1e} | {seconds:.0f} |
    -->
    ...
    <!-- end of table -->

`rows` is a pattern that a whole subject must match (benchmarks/results.py says what that is), `cells` the line that is
made for each such subject, in the file's order; several pairs of the two may follow one another. Names in it are groups
of the pattern and quantities of the subject; also, of the quantity "forward": "forward floor", "forward of floor" (the
share of the floor that was reached), "forward @jla" (a peer's), "forward jla/ours", and "device", "jax version",
"command". A cell with a name that this subject lacks stays empty; a name that all subjects lack is an error.

`<!-- table of docs/plans/*.json -->` is made by benchmarks/plans.py, `<!-- table of benchmarks/results` with lines
`fact: ...`, a line for each, by benchmarks/facts.py.
"""

import pathlib
import re
import string
import subprocess
import sys

from benchmarks import facts, plans, results
from tests.command_line import Parser, list_of

ROOT = pathlib.Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- table of (\S+)(.*?)-->\n)(.*?)(<!-- end of table -->)", re.DOTALL)


class Several(list):
    """A quantity that was taken several times: every value with the same format."""

    def __format__(self, spec: str) -> str:
        return ", ".join(format(value, spec) for value in self)


def pages() -> dict[str, pathlib.Path]:
    """The pages that have tables to be made, by their paths in the repository."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = {name: ROOT / name for name in listed.split("\n") if name and (ROOT / name).exists()}
    return {name: path for name, path in paths.items() if BLOCK.search(path.read_text())}


def remade(page: str) -> str:
    """The text of a page with its tables made anew."""
    return BLOCK.sub(lambda found: found[1] + made(found[2], found[3]) + found[5], page)


def made(source: str, description: str) -> str:
    """The lines of one table, each with its end."""
    if "*" in source:
        return plans.table(sorted(ROOT.glob(source)))
    if not source.endswith(".json"):
        return facts.table(ROOT / source, description)
    subjects = by_subject(results.read(ROOT / source))
    lines, pattern = [], ""
    for line in filter(None, map(str.strip, description.splitlines())):
        kind, _, text = line.partition(": ")
        if kind == "title":
            lines += [text, "|---" * (text.count("|") - 1) + "|"]
        elif kind == "rows":
            pattern = text
        elif kind == "cells":
            lines += _lines(source, subjects, pattern, text)
        else:
            raise ValueError(f"{source}: {line!r} begins with neither title, rows nor cells")
    return "".join(f"{line}\n" for line in lines)


def by_subject(rows: list[results.Row]) -> dict[str, dict]:
    """subject -> the names of its quantities and what follows from them -> values."""
    subjects: dict[str, dict] = {}
    for row in rows:
        names = subjects.setdefault(row.subject, {"device": row.device, "command": row.command})
        if names["device"] != row.device:
            raise ValueError(
                f"{row.what}: measured on {names['device']} and {row.device}; each needs a file of its own"
            )
        names |= {f"{package} version": version for package, version in row.versions.items()}
        name = row.quantity + (f" @{row.peer}" if row.peer else "")
        names[name] = Several([*names.get(name, []), row.value])
        if row.floor is not None:
            names[f"{name} floor"], names[f"{name} of floor"] = row.floor, row.floor / row.value
    for names in subjects.values():
        for name in [name for name in names if " @" in name and not name.endswith(" floor")]:
            quantity, peer = name.split(" @")
            if quantity in names:
                names[f"{quantity} {peer}/ours"] = names[name][0] / names[quantity][0]
    return subjects


def _lines(source: str, subjects: dict[str, dict], pattern: str, template: str) -> list[str]:
    matching = [(found, names) for subject, names in subjects.items() if (found := re.fullmatch(pattern, subject))]
    if not matching:
        raise ValueError(f"{source}: no subject matches {pattern!r}; there are: {'; '.join(subjects)[:500]}")
    names = [names | found.groupdict() for found, names in matching]
    for field in _fields(template):
        if not any(field in one for one in names):
            raise ValueError(f"{source}: {pattern!r} has no {field!r}; there are: {', '.join(names[0])}")
    if not template.startswith("|"):
        return [_cell(template, one) for one in names]
    cells = [cell.strip() for cell in template[1:-1].split("|")]
    return ["| " + " | ".join(_cell(cell, one) for cell in cells) + " |" for one in names]


def _fields(template: str) -> list[str]:
    return [field for _, field, _, _ in string.Formatter().parse(template) if field]


def _cell(template: str, names: dict) -> str:
    if not all(field in names for field in _fields(template)):
        return ""
    parts = string.Formatter().parse(template)
    return "".join(text + (format(names[field], spec) if field else "") for text, field, spec, _ in parts)


def main(argv: list[str] | None = None) -> int:
    known = pages()
    parser = Parser("benchmarks.tables", __doc__)
    parser.add_argument("pages", nargs="*", metavar="PAGE", type=list_of("page", known), help="default: all")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page would change")
    arguments = parser.parse_args(argv)
    changed = 0
    for name in sum(arguments.pages, []) or known:
        before = known[name].read_text()
        after = remade(before)
        changed += after != before
        if after != before and not arguments.check:
            known[name].write_text(after)
        print(f"{name}: {'as it was' if after == before else 'differs' if arguments.check else 'written'}")
    return 1 if changed and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
