"""Tables with one measured fact a line, out of any files of results; for `benchmarks.tables`.

    <!-- table of benchmarks/results
    columns: what, value, beside it, device, versions, date, command
    from: mesh_one_h100.json, python -m benchmarks.mesh
    fact: 1.04 B parameters, 4 rows of 8,192 | one GPU: speed | {:,.0f} tokens/s
    fact: the same, one long row | one GPU, one row of 425,984: speed | {:,.0f} tokens/s | short = one GPU: speed
    -->

A line `fact` is what to call it, the row's `what`, and how to write its value. Beside it stand the same row's peers and
the share of its floor, and each `name = what` that follows, another row of the same file (`what @peer`: of a peer).
`from` is the file and the command that makes it today (a row's own command is the one that made it). More results are
one more line.
"""

import pathlib
import re
from collections.abc import Iterator

from benchmarks import results

# What a row calls its peer, as people do.
PEERS = {"jla": "jax-linear-attention", "fla": "flash-linear-attention", "cudnn": "cuDNN", "xla": "plain XLA"}
COLUMNS = ("what", "value", "beside it", "device", "versions", "date", "command")


def table(folder: pathlib.Path, description: str) -> str:
    """The lines of one table, each with its end; ValueError names what a line asks for and is not there."""
    columns, rows, command, lines = COLUMNS, [], "", []
    for line in filter(None, map(str.strip, description.splitlines())):
        kind, _, text = line.partition(": ")
        if kind == "columns":
            columns = text.split(", ")
            if unknown := [column for column in columns if column not in COLUMNS]:
                raise ValueError(f"{line!r}: no column {unknown[0]!r}; allowed: {', '.join(COLUMNS)}")
        elif kind == "from":
            file, _, command = text.partition(", ")
            rows = results.read(folder / file)
        elif kind == "fact":
            cells = _cells(rows, command, *map(str.strip, text.split("|")))
            lines.append(_line(cells[column] for column in columns))
        else:
            raise ValueError(f"{line!r} begins with neither columns, from nor fact")
    return "".join([_line(columns), _line("---" for _ in columns), *lines])


def _line(cells) -> str:
    return "| " + " | ".join(cells) + " |\n"


def _cells(rows: list[results.Row], command: str, label: str, what: str, form: str, *beside: str) -> dict[str, str]:
    ours = _rows(rows, what)
    number = re.search(r"\{.*?\}", form)[0]
    named = [(PEERS.get(peer, peer), found) for peer, found in _peers(rows, what).items()]
    named += [(name, _rows(rows, other)) for name, _, other in (text.partition(" = ") for text in beside)]
    said = [f"{name} {_written(number, found)}" for name, found in named]
    said += [f"{ours[0].floor / ours[0].value:.0%} of the floor"] if ours[0].floor else []
    return {
        "what": label,
        "value": form.replace(number, _written(number, ours)),
        "beside it": "; ".join(said),
        "device": re.sub(r" \d+GB \w+$", "", ours[0].device),  # a card's memory is no result
        "versions": f"jax {ours[0].versions['jax']}" if "jax" in ours[0].versions else "",
        "date": ours[0].date or "",
        "command": f"`{command or ours[0].command}`",
    }


def _rows(rows: list[results.Row], what: str) -> list[results.Row]:
    """Ours of that name, or with `@peer` behind it that peer's."""
    what, _, peer = what.partition(" @")
    found = [row for row in rows if row.what == what and row.peer == (peer or None)]
    if not found:
        raise ValueError(f"no row {what!r}; there are: {'; '.join(dict.fromkeys(row.what for row in rows))[:800]}")
    return found


def _peers(rows: list[results.Row], what: str) -> dict[str, list[results.Row]]:
    named: dict[str, list[results.Row]] = {}
    for row in rows:
        if row.what == what and row.peer:
            named.setdefault(row.peer, []).append(row)
    return named


def _written(number: str, rows: list[results.Row]) -> str:
    """The value; of one that was taken several times the least and the most."""
    values = sorted(row.value for row in rows)
    return " to ".join(dict.fromkeys(number.format(value) for value in (values[0], values[-1])))


def numbers(row: results.Row) -> Iterator[tuple[str, float]]:
    """(unit, number) of all that a table may print of a row: its value, and the share of its floor in percent."""
    if not isinstance(row.value, str):
        yield re.split(r" |/(?!s$)", row.unit)[0], float(row.value)
        if row.floor:
            yield "%", 100 * row.floor / row.value
