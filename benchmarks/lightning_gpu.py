"""The tables of lightning attention on a GPU, from the reports of the bench: benchmarks/lightning_gpu.md.

    python -m benchmarks.kernels.bench lightning_attention --json=report.json
    python -m benchmarks.lightning_gpu report.json [report.json ...]

Of a row that stands in several reports the last counts. Each row keeps the device and copy rate of its own report, and
rows are compared with rows of the same report.
"""

import json
import pathlib
import sys

SEQUENCES = ("1x32768x64", "4x8192x64", "1x8192x64", "1x131072x16", "8x2048x16", "1x32768x8", "head_dim64")
PEERS = ("jla", "fla")


def main(paths: list[str]) -> None:
    rows, reports = {}, [json.loads(pathlib.Path(path).read_text()) for path in paths]
    for report in reports:
        rows |= {row["name"]: row for row in report["rows"]}
    for report in reports:
        rate = report["copy_bytes_per_second"] / 1e12
        names = ", ".join(row["name"] for row in report["rows"])
        print(f"- {report['device']}, jax {report['jax']}, device copy {rate:.2f} TB/s: {names}")
    failed = {name: row["failed"] for name, row in rows.items() if "failed" in row}
    for name, why in failed.items():
        print(f"- {name}: {why}")
    rows = {name: row for name, row in rows.items() if name not in failed}
    count, worst = sum(len(row["parity"]) for row in rows.values()), max(map(nearest, rows.values()))
    print(f"\nParity: {count} comparisons, the nearest at {worst:.2f} of its bound (twice plain XLA's error).")
    for what in ("forward", "forward+backward"):
        table(what, [rows[name] for name in SEQUENCES if name in rows])
    long_and_packed([{row["name"]: row for row in report["rows"] if "failed" not in row} for report in reports])
    decode([row for row in rows.values() if "step" in row])


def nearest(row: dict) -> float:
    return max(entry["error"] / entry["allowed"] for entry in row["parity"].values() if entry["allowed"])


def table(what: str, rows: list[dict]) -> None:
    print(f"\n| B, S, N, H | {what}: floor | ours | of the floor | jla | fla | jla / ours |\n" + "|---" * 7 + "|")
    for row in rows:
        ours, theirs = row[what], [row.get("peers", {}).get(peer, {}).get(what) for peer in PEERS]
        cells = [f"{row['B']}, {row['S']}, {row['N']}, {row['H']}", f"{ours['floor_ms']:.3f}", f"{ours['ms']:.3f}"]
        cells += [f"{ours['fraction_of_floor']:.0%}", *(f"{peer['ms']:.3f}" if peer else "" for peer in theirs)]
        cells += [f"{theirs[0]['ms'] / ours['ms']:.2f}" if theirs[0] else ""]
        print("| " + " | ".join(cells) + " |")


def long_and_packed(reports: list[dict[str, dict]]) -> None:
    print("\n| compared | forward | forward+backward |\n|---|---|---|")
    compared = [
        ("64 documents in 32,768 tokens, 64 heads: ms", "packed", None, 1),
        ("that against one document", "packed", "1x32768x64", 1),
        ("1,048,576 tokens, 8 heads: ms", "1x1048576x8", None, 1),
        ("that per token against 32,768 tokens", "1x1048576x8", "1x32768x8", 32),
        ("1,048,576 tokens, 24 heads (3.2e9 elements): ms", "1x1048576x24", None, 1),
        ("that against three calls of 8 heads", "1x1048576x24", "1x1048576x8", 3),
    ]
    for label, name, other, factor in compared:
        rows = next((rows for rows in reversed(reports) if name in rows and (other is None or other in rows)), None)
        if rows:
            row, below = rows[name], rows.get(other)
            times = [row[w]["ms"] / (factor * below[w]["ms"] if below else 1) for w in ("forward", "forward+backward")]
            print(f"| {label} | " + " | ".join(f"{time:.3f}" for time in times) + " |")


def decode(rows: list[dict]) -> None:
    print("\n| decode, rows of 64 heads | floor | ours | of the floor | fla |\n|---|---|---|---|---|")
    for row in rows:
        ours, fla = row["step"], row.get("peers", {}).get("fla", {}).get("step")
        times = f"{ours['floor_ms']:.4f} | {ours['ms']:.4f} | {ours['fraction_of_floor']:.0%}"
        print(f"| {row['B']} | {times} | {fla['ms']:.4f} |" if fla else f"| {row['B']} | {times} | |")


if __name__ == "__main__":
    main(sys.argv[1:])
