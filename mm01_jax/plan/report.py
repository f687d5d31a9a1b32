"""A plan in words, as JSON and as a bar chart."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mm01_jax.config import MESH_AXES, Config
from mm01_jax.files import written
from mm01_jax.parallel.softmax.choice import choose, costs
from mm01_jax.plan import memory
from mm01_jax.plan.planner import Plan
from mm01_jax.plan.search import Candidate
from mm01_jax.plan.targets import GIB, Target

_MOST_MESSAGES = 16
_JUDGED = {
    "tpu": "an upper bound; the compiler judged the peak",
    "cuda": "a GPU gives the temporaries in one piece: this is what has to fit",
}


def text(plan: Plan) -> str:
    """The whole report."""
    return "\n".join([*_head(plan), *_memory(plan), *_work(plan), *_messages(plan), *_time(plan), *_verdict(plan)])


def _head(plan: Plan) -> list[str]:
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    train = plan.config.train
    length = "tokens a row" if plan.kind == "train" else "tokens of cache a row"
    return [
        f"{plan.config.name}: {plan.kind} on {plan.target.name} ({plan.target.chips} chips, {plan.target.topology}"
        + (f", {plan.target.slices} slices)" if plan.target.slices > 1 else ")"),
        f"  mesh {mesh}; {train.batch_size} rows, {train.sequence_length:,} {length}; "
        f"{plan.tokens:,} tokens a call; experts {_experts(plan.config)}",
        *_sequence(plan),
    ]


def _sequence(plan: Plan) -> list[str]:
    """How keys cross the sequence axis, and what either way would cost one layer."""
    own, item, shards = memory.sequence_keys(plan.config)
    if plan.kind != "train" or shards == 1:
        return []
    compute = plan.config.compute
    cost_of = costs(own, item, shards, compute.remat)
    numbers = ", ".join(f"{name} {cost.sent / GIB:.2f} / {cost.held / GIB:.2f}" for name, cost in cost_of.items())
    kind = compute.sequence_attention
    if kind == "auto":
        kind = choose(own, item, shards, compute.remat)
    return [f"  {compute.sequence_layout} rows, keys by {kind} (GiB sent / held a softmax layer: {numbers})"]


def _experts(config: Config) -> str:
    if config.model.routing == "capacity":
        return f"capacity, buffers for {config.model.capacity_factor:g} x the balanced load"
    bound = config.compute.dropless_bound
    return "dropless, buffers for " + ("the worst case" if bound is None else f"{bound:g} x the balanced load")


def _memory(plan: Plan) -> list[str]:
    lines = ["memory of one chip, GiB"]
    lines += [f"  {name:<28}{size / GIB:10.2f}" for name, size in plan.arguments.items()]
    if plan.compiled is None:
        lines += [f"  {name + ' (estimate)':<28}{size / GIB:10.2f}" for name, size in plan.estimated.items()]
        return [*lines, f"  {'sum':<28}{plan.peak / GIB:10.2f} of {plan.target.chip.hbm / GIB:.2f}"]
    if not plan.compiled.memory:
        return lines
    sizes = plan.compiled.memory
    return [
        *lines,
        f"  {'activations at the peak':<28}{(sizes['peak'] - sizes['arguments']) / GIB:10.2f}",
        f"  {'peak':<28}{sizes['peak'] / GIB:10.2f} of {plan.target.chip.hbm / GIB:.2f}",
        f"  {'arguments + temporaries':<28}{(sizes['arguments'] + sizes['temporaries']) / GIB:10.2f}"
        f"   ({_JUDGED[plan.target.platform]})",
        *(f"  made: {made.shape:<34}{made.bytes / GIB:10.2f}   {made.source}" for made in plan.largest),
    ]


def _work(plan: Plan) -> list[str]:
    model = plan.model_flops / plan.target.chips
    lines = [
        "work of one chip",
        f"  {plan.counts.flops:.4g} FLOPs in matrix multiplications; the model needs {model:.4g} "
        f"({plan.counts.flops / model:.3f} of it done: recomputation, masked blocks, padding)",
    ]
    if plan.moved is not None:
        lines.append(f"  {plan.moved:.4g} bytes to and from memory")
    return lines


def _messages(plan: Plan) -> list[str]:
    whole = plan.compiled is not None and plan.compiled.text
    lines = ["collectives of one chip" + ("" if whole else " (those that the program states; XLA adds its own)")]
    ranked = sorted(plan.messages.items(), key=lambda item: -item[0].bytes * item[1])
    for one, times in ranked[:_MOST_MESSAGES]:
        beside = f", {plan.overlapped[one]} beside other work" if plan.overlapped[one] else ""
        lines.append(f"  {one.kind:<18} over {'+'.join(one.axes):<24} {one.bytes / 2**20:10.2f} MiB x {times}{beside}")
    if len(ranked) > _MOST_MESSAGES:
        rest = sum(one.bytes * times for one, times in ranked[_MOST_MESSAGES:])
        lines.append(f"  and {len(ranked) - _MOST_MESSAGES} smaller kinds, {rest / 2**20:.2f} MiB together")
    return lines


def _time(plan: Plan) -> list[str]:
    if (times := plan.times) is None:
        return []
    return [
        "roofline (data-sheet speeds; balanced experts; a message as a ring along one dimension of the torus)",
        f"  arithmetic {times.compute:.4g} s, memory {times.memory:.4g} s, messages {times.messages:.4g} s",
        f"  a step takes {times.best:.4g} s if all of it overlaps (MFU {plan.mfu(times.best):.1%}), "
        f"{times.worst:.4g} s if no message does (MFU {plan.mfu(times.worst):.1%}),",
        f"  {times.shown:.4g} s with the {times.hidden:.4g} s of messages that the program runs beside work "
        f"(MFU {plan.mfu(times.shown):.1%})",
    ]


def _verdict(plan: Plan) -> list[str]:
    lines = []
    if plan.compiled is not None:
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in plan.compiled.seconds.items())
        lines.append(f"planned with {plan.compiled.host_bytes / GIB:.2f} GiB of this machine's memory: {seconds}")
    if plan.fits:
        return [*lines, "FITS"]
    parts = {**plan.arguments, **{f"{name} (estimate)": size for name, size in plan.estimated.items()}}
    largest = sorted(parts.items(), key=lambda item: -item[1])[:4]
    terms = ", ".join(f"{name} {size / GIB:.1f} GiB" for name, size in largest)
    said = plan.compiled.refusal if plan.compiled is not None else None
    return [*lines, *([f"  the compiler: {said}"] if said else []), f"DOES NOT FIT: the largest terms are {terms}"]


def candidates(ranked: list[Candidate], target: Target, most: int) -> str:
    """The best meshes of a search, one line each."""
    fitting = sum(one.bytes <= target.chip.hbm for one in ranked)
    lines = [f"{len(ranked)} meshes of {target.chips} chips divide this model and batch; by shapes {fitting} fit"]
    for one in ranked[:most]:
        mesh = ",".join(f"{axis}={getattr(one.config.mesh, axis)}" for axis in MESH_AXES)
        fits = "" if one.bytes <= target.chip.hbm else "  does not fit"
        lines.append(f"  --mesh={mesh:<42} {one.bytes / GIB:8.1f} GiB  {one.seconds:10.4g} s{fits}")
    return "\n".join(lines)


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan's numbers; bytes, FLOPs and counts of one chip."""
    times = plan.times
    numbers = {
        "config": plan.config.name,
        "step": plan.kind,
        "target": plan.target.name,
        "chips": plan.target.chips,
        "mesh": plan.mesh,
        "rows": plan.config.train.batch_size,
        "length": plan.config.train.sequence_length,
        "tokens": plan.tokens,
        "fits": plan.fits,
        "hbm": plan.target.chip.hbm,
        "peak": plan.peak,
        "experts": _experts(plan.config),
        "arguments": plan.arguments,
        "estimated": plan.estimated,
        "flops": plan.counts.flops,
        "model_flops": plan.model_flops,
        "bytes_moved": plan.moved,
        "collectives": _rows(plan.messages, plan.overlapped),
    }
    if plan.compiled is not None:
        numbers["compiled"] = {k: v for k, v in dataclasses.asdict(plan.compiled).items() if k != "text"}
    if times is not None:
        bounds = ("best", "shown", "worst")
        numbers["seconds"] = dataclasses.asdict(times) | {name: getattr(times, name) for name in bounds}
        numbers["mfu"] = {name: plan.mfu(getattr(times, name)) for name in bounds}
    return numbers


def _rows(messages: Mapping, overlapped: Mapping) -> list[dict[str, Any]]:
    ranked = sorted(messages.items(), key=lambda item: -item[0].bytes * item[1])
    return [{**dataclasses.asdict(one), "count": times, "overlapped": overlapped[one]} for one, times in ranked]


def save_chart(plan: Plan, path: str) -> None:
    """A bar of the memory of one chip beside the memory that it has, as PNG."""
    from matplotlib.figure import Figure  # an extra (plots), imported by those who draw

    parts = {name: size / GIB for name, size in plan.arguments.items() if size}
    if plan.compiled is not None and plan.compiled.memory:
        parts["activations"] = (plan.peak - plan.compiled.memory["arguments"]) / GIB
    else:
        parts |= {f"{name} (estimate)": size / GIB for name, size in plan.estimated.items() if size}
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    start = 0.0
    for name, size in parts.items():
        axes.barh(0, size, left=start, label=f"{name} {size:.1f}")
        start += size
    limit = plan.target.chip.hbm / GIB
    axes.axvline(limit, color="black", linestyle="--", label=f"one chip has {limit:.1f}")
    axes.set(xlabel="GiB", yticks=[], xlim=(0, math.ceil(1.05 * max(limit, start))))
    axes.set_title(f"{plan.config.name}, {plan.kind}, {plan.target.name}")
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.35), frameon=False, fontsize="small")
    with written(path) as file:
        figure.savefig(file, format="png", dpi=120)
