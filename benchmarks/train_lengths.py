"""A picture of a training step's speed by the length of its rows: three lines, from rows of results.

    for layers in lightning hybrid softmax; do python -m benchmarks.train_step --layers=$layers --whole-documents \\
        --length=8192,32768,131072,524288 --rows=8 --remat=full --no-profile \\
        --json=benchmarks/results/train_lengths.json; done
    python -m benchmarks.train_lengths --picture=docs/train_lengths.svg

(softmax alone to 131072: a step of 524,288 tokens would take minutes.)
"""

import html
import math
import pathlib
import re
import sys

from benchmarks import results
from tests.command_line import Parser

ROWS = results.ROOT / "benchmarks/results/train_lengths.json"
COLORS = {"lightning": "#2f6fb0", "hybrid": "#3c8d5a", "softmax": "#d45f4b"}
_SUBJECT = re.compile(r"step \w+?(?: of (?P<layers>\w+))? whole \d+x(?P<length>\d+), .*")
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 380, 70, 30, 110, 50


def speeds(rows: list[results.Row]) -> dict[str, dict[int, float]]:
    """Layers -> length of a row -> tokens/s."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        match = _SUBJECT.fullmatch(row.subject)
        if match and row.quantity == "speed":
            found.setdefault(match["layers"] or "hybrid", {})[int(match["length"])] = float(row.value)
    return {layers: dict(sorted(found[layers].items())) for layers in COLORS if layers in found}


def picture(lines: dict[str, dict[int, float]]) -> str:
    """SVG; lengths in powers of two across, thousands of tokens/s up."""
    lengths = sorted({length for line in lines.values() for length in line})
    top = 1e5 * math.ceil(max(max(line.values()) for line in lines.values()) / 1e5)
    span = max(1.0, math.log2(lengths[-1] / lengths[0]))

    def at(length: float, speed: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * math.log2(length / lengths[0]) / span
        return x, TOP + (HEIGHT - TOP - BOTTOM) * (1 - speed / top)

    drawn = []
    for speed in range(0, int(top) + 1, int(1e5)):
        y = at(lengths[0], speed)[1]
        drawn.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        drawn.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{speed // 1000} K</text>')
    for length in lengths:
        x = at(length, 0)[0]
        drawn.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{length // 1024} K</text>')
    for layers, line in lines.items():
        points, color = [at(*point) for point in line.items()], COLORS[layers]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        for (x, y), speed in zip(points, line.values(), strict=True):
            drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>')
            drawn.append(f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">{speed / 1000:.0f}</text>')
        x, y = points[-1]
        drawn.append(f'<text x="{x + 10:.1f}" y="{y + 4:.1f}" fill="{color}">{html.escape(layers)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">tokens a row, one document</text>')
    drawn.append(f'<text x="{LEFT - 50}" y="{TOP - 14}">tokens/s</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
    return head + 'font-size="12">\n' + "\n".join(drawn) + "\n</svg>\n"


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.train_lengths", __doc__)
    parser.add_argument("--rows", metavar="FILE", default=str(ROWS), help="rows of results")
    parser.add_argument("--picture", metavar="FILE", required=True, help="SVG")
    arguments = parser.parse_args(argv)
    lines = speeds(results.read(arguments.rows))
    if not lines:
        parser.error(f"{arguments.rows} has no speed of a step of whole documents")
    pathlib.Path(arguments.picture).write_text(picture(lines))
    for layers, line in lines.items():
        print(f"{layers:<10}" + "".join(f"{length:>10,}: {speed:>9,.0f}" for length, speed in line.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
