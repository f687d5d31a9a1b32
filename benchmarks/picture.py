"""Draws docs/kernels.svg, the picture of the README, from benchmarks/results.

    python -m benchmarks.picture [--check]

A bar is a time as a multiple of ours in the same run; what is longer than the paper ends in an arrow and says its time.
"""

import dataclasses
import html
import pathlib
import sys

from benchmarks import facts, results
from tests.command_line import Parser

ROOT = pathlib.Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "kernels.svg"
LONGEST, WIDTH, LABELS, BAR, GAP = 4.0, 760, 230, 16, 4  # in times of ours; then pixels
OURS, OTHERS, INK = "#2f6fb0", "#b9c2cc", "#24292f"


@dataclasses.dataclass(frozen=True)
class Group:
    """One operation, forward and backward: the row of ours and the peers beside it."""

    title: str
    file: str
    what: str


GROUPS = (
    Group(
        "lightning attention, 32,768 tokens of 64 heads",
        "lightning_attention.json",
        "lightning_attention 1x32768x64: forward+backward",
    ),
    Group(
        "softmax attention, 4 rows of 8,192 tokens, 8 heads",
        "softmax_and_grouped.json",
        "softmax_attention bench_1b: forward+backward",
    ),
    Group(
        "experts' matmul, 65,536 rows over 32 experts",
        "softmax_and_grouped.json",
        "grouped_matmul bench_1b: forward+backward",
    ),
)


def bars(group: Group) -> tuple[str, list[tuple[str, float]]]:
    """(device, (whose, milliseconds) of ours, then the peers)."""
    rows = [row for row in results.read(ROOT / "benchmarks/results" / group.file) if row.what == group.what]
    named = {row.peer: float(row.value) for row in rows}
    return rows[0].device, [
        ("this", named.pop(None)),
        *((facts.PEERS.get(peer, peer), ms) for peer, ms in named.items()),
    ]


def drawn() -> str:
    """The picture as SVG."""
    parts, y, devices = [], 24, set()
    for group in GROUPS:
        device, times = bars(group)
        devices.add(device)
        parts.append(_text(8, y, group.title, bold=True))
        y += 8
        for name, ms in times:
            parts += _bar(y, name, ms, ms / times[0][1])
            y += BAR + GAP
        y += 22
    title = f"Forward and backward on one {' and '.join(sorted(devices))}, bfloat16; shorter is faster"
    parts.append(_text(8, y, title))
    box = f'<rect width="{WIDTH}" height="{y + 12}" fill="white"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 12}" role="img">'
    return "\n".join([head, f"<title>{html.escape(title)}</title>", box, *parts, "</svg>"]) + "\n"


def _bar(y: int, name: str, ms: float, times: float) -> list[str]:
    width = round(min(times, LONGEST) / LONGEST * (WIDTH - LABELS - 90))
    color = OURS if name == "this" else OTHERS
    said = f"{ms:.2f} ms" + (" →" if times > LONGEST else "")
    rectangle = f'<rect x="{LABELS}" y="{y}" width="{width}" height="{BAR}" fill="{color}"/>'
    return [_text(24, y + 13, name), rectangle, _text(LABELS + width + 6, y + 13, said)]


def _text(x: int, y: int, text: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    style = f'font-family="sans-serif" font-size="13" fill="{INK}"{weight}'
    return f'<text x="{x}" y="{y}" {style}>{html.escape(text)}</text>'


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.picture", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the picture would change")
    check = parser.parse_args(argv).check
    same = PICTURE.exists() and PICTURE.read_text(encoding="utf-8") == drawn()
    if not check:
        PICTURE.write_text(drawn(), encoding="utf-8")
    print(f"{PICTURE.relative_to(ROOT)}: {'as it was' if same else 'differs' if check else 'written'}")
    return 1 if check and not same else 0


if __name__ == "__main__":
    sys.exit(main())
