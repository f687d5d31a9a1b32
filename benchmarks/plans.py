"""The tables of docs/plans.md from the numbers that plans have left (docs/plans/*.json); for `benchmarks.tables`."""

import json
import pathlib
from collections import defaultdict

from mm01_jax.plan import roofline, targets
from mm01_jax.plan.traced_work import Collective

GIB = 2**30


def row(plan: dict) -> list[str]:
    """One plan as the cells of its line."""
    mesh = "×".join(str(size) for size in plan["mesh"].values())
    compiled = plan["compiled"]
    seconds, memory = compiled["seconds"], compiled["memory"]
    return [
        f"`{plan['config']}`",
        plan["step"],
        f"`{plan['target']}`",
        str(plan["chips"]),
        mesh,
        f"{plan['rows']} × {plan['length']:,}",
        f"{plan['peak'] / GIB:.1f} of {plan['hbm'] / GIB:.1f}",
        f"{(memory['arguments'] + memory['temporaries']) / GIB:.1f}",
        f"{_seconds(plan['seconds']['best'])} to {_seconds(plan['seconds']['worst'])}",
        f"{plan['mfu']['best']:.0%} to {plan['mfu']['worst']:.0%}" if plan["step"] == "train" else "",
        f"{_mfu_shown(plan):.0%}" if plan["step"] == "train" else "",
        f"{seconds['compile']:.0f} ({seconds['processor']:.0f})",
        f"{compiled['host_bytes'] / GIB:.1f}",
    ]


def collectives(plan: dict) -> str:
    """Bytes of each kind over its axes, the largest first, those under a thousandth left out."""
    totals: dict[tuple[str, str], list[int]] = {}
    for one in plan["collectives"]:
        total = totals.setdefault((one["kind"], "+".join(one["axes"])), [0, 0, 0])
        total[0] += one["count"]
        total[1] += one["count"] * one["bytes"]
        total[2] += one["overlapped"]
    whole = sum(size for _, size, _ in totals.values())
    kept = sorted((item for item in totals.items() if item[1][1] * 1000 > whole), key=lambda item: -item[1][1])
    return "; ".join(
        f"{kind} over {axes} {_size(size)} in {count:,}" + (f", {beside:,} of them beside work" if beside else "")
        for (kind, axes), (count, size, beside) in kept
    )


def over_axes(plan: dict) -> dict[str, tuple[float, float, float]]:
    """Axes -> (bytes of one chip and step, their seconds at link speed, seconds of those beside work)."""
    found, target = defaultdict(lambda: (0.0, 0.0, 0.0)), targets.parse(plan["target"])
    for one in plan["collectives"]:
        message = Collective(one["kind"], tuple(one["axes"]), one["bytes"])
        each = roofline.seconds(message, target, plan["mesh"])
        more = one["count"] * one["bytes"], one["count"] * each, one["overlapped"] * each
        axes = "+".join(one["axes"])
        found[axes] = tuple(a + b for a, b in zip(found[axes], more, strict=True))
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def _mfu_shown(plan: dict) -> float:
    """Where messages that the compiled program has beside work take no time of their own, and all others do."""
    seconds, hidden = plan["seconds"], sum(beside for _, _, beside in over_axes(plan).values())
    times = roofline.Times(seconds["compute"], seconds["memory"], seconds["messages"], hidden)
    return plan["mfu"]["best"] * seconds["best"] / times.shown


def _axes_rows(plan: dict) -> list[str]:
    whole = plan["seconds"]["messages"]
    name = f"`{plan['config']}` on `{plan['target']}`"
    return [
        f"| {name} | {axes} | {size / GIB:,.1f} | {1e3 * seconds:,.0f} | {beside / seconds:.0%} |"
        for axes, (size, seconds, beside) in over_axes(plan).items()
        if seconds > whole / 1000
    ]


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size > GIB else f"{size / 2**20:.1f} MiB"


HEAD = (
    "config",
    "step",
    "target",
    "chips",
    "mesh",
    "rows × tokens",
    "peak GiB",
    "arguments + temporaries GiB",
    "step s",
    "MFU",
    "MFU, messages as the program has them",
    "compile s (processor s)",
    "planner GiB",
)


def table(files: list[pathlib.Path]) -> str:
    """A line for each plan, and below one for its collectives."""
    plans = [json.loads(file.read_text()) for file in files]
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(row(plan)) + " |" for plan in plans]
    lines += ["", "| training | over | GiB of one chip and step | ms at link speed | of them beside work |"]
    lines += ["|---|---|---|---|---|"]
    lines += [line for plan in plans if plan["step"] == "train" for line in _axes_rows(plan)]
    lines += ["", "| plan | collectives of one chip and step |", "|---|---|"]
    lines += [f"| `{plan['config']}` {plan['step']} on `{plan['target']}` | {collectives(plan)} |" for plan in plans]
    return "".join(f"{line}\n" for line in lines)
