"""Tables 1 and 2: training steps on every mesh of a host beside their plans, and the longest row of each."""

import dataclasses
import math
import pathlib
import statistics
import time
from collections.abc import Iterator
from typing import ClassVar

from benchmarks.results import read
from benchmarks.scaling.cases import Case, config_of
from benchmarks.scaling.planned import GIB, Planned, Rows
from benchmarks.scaling.turns import Ready, Turns
from mm01_jax.config import Config, ConfigError
from mm01_jax.config.mesh import sharding_problems


@dataclasses.dataclass(frozen=True)
class Training:
    """The job of a case. steps: timed, after one that warms up; 0 times the first one."""

    case: Case
    steps: int

    seconds: ClassVar[float] = 240

    @property
    def name(self) -> str:
        return self.case.name

    def work(self) -> Iterator[Ready | Rows]:
        if self.case.scaling == "bound":
            yield from _bound(self.case, self.steps)
            return
        import jax

        from benchmarks import mesh
        from mm01_jax.parallel.overlap import compiler_options

        config = config_of(self.case)
        if problems := sharding_problems(config):
            raise ConfigError(problems)
        began = time.monotonic()
        placed, programs, planned = _traced(config)
        traced = time.monotonic() - began
        options = compiler_options(jax.devices()[0].platform)
        program, initial = (lowered.compile(compiler_options=options) for lowered in programs)
        compiled, gib = time.monotonic() - began - traced, mesh.gib(program)
        yield Ready(f"traced in {traced:.0f} s, compiled in {compiled:.0f} s, {gib:.1f} GiB", gib)
        yield [("trace", traced, "s"), ("compile", compiled, "s"), *planned(program.as_text())]
        yield from _run(config, placed, (program, initial), self.case.document, self.steps)


def _bound(case: Case, steps: int) -> Iterator[Ready | Rows]:
    """Twice the rounding of bfloat16, against float32's losses, at the first weights."""
    from benchmarks import mesh

    config = config_of(case)
    narrow, wide = (mesh.first_losses(config, dtype, steps + 1) for dtype in ("bfloat16", "float32"))
    yield Ready("the losses of the first weights are known")
    yield [("difference", 2 * mesh.apart(narrow, wide), "relative")]


def _traced(config: Config):
    """(mesh, (step, initial state) lowered, the planner's rows as a function of the compiled step's text)."""
    import jax

    from benchmarks import mesh
    from mm01_jax.model.remat import with_remat_settled
    from mm01_jax.plan import memory, targets
    from mm01_jax.plan.steps import make_step

    placed, programs = mesh.trace(config)
    with jax.set_mesh(placed):
        step = make_step("train", config, placed)
        config = with_remat_settled(config, step.arguments[0], lambda _: None)  # as what was traced
        step = make_step("train", config, placed)
        given = memory.per_chip(step)
        made = memory.estimated("train", config, step.tokens, given["parameters"])
        planned = Planned("train", config, step, sum(given.values()) + sum(made.values()))
    return placed, programs, lambda text: planned.rows(text, targets.parse(f"h200-{placed.size}"))


def _run(config: Config, placed, programs, document: int, steps: int) -> Iterator[Rows]:
    import jax

    from benchmarks import mesh, mesh_messages, mesh_rows
    from mm01_jax.chips import peak_flops

    program, initial = programs
    state, document = initial(jax.random.key(config.train.seed)), document or config.train.sequence_length
    losses, seconds, load, refused = [], [], 0.0, 0.0
    for number in range(steps + 1):
        batch = mesh.place(mesh_rows.rows(config, number, document=document), config, placed)
        jax.block_until_ready((state, batch))
        start = time.monotonic()
        state, metrics = program(state, batch)
        losses.append(float(metrics["loss"]))  # waits
        seconds.append(time.monotonic() - start)
        load = max(load, float(metrics["expert_load"].max()))
        refused += float(metrics["refused"])
    step, size = statistics.median(seconds[1:] or seconds), config.train
    tokens = size.batch_size * size.sequence_length
    rows = [("rows", size.batch_size, ""), ("length", size.sequence_length, "tokens"), ("document", document, "tokens")]
    rows += [("speed", tokens / step, "tokens/s"), ("step", step, "s"), ("memory", mesh.gib(program), "GiB/GPU")]
    if stats := jax.local_devices()[0].memory_stats():
        rows.append(("peak", stats["peak_bytes_in_use"] / GIB, "GiB/GPU"))
    if peak_flops(jax.devices()[0].device_kind):
        rows.append(("MFU", 100 * mesh.mfu(config, tokens / step), "%"))
    rows += [("load", load, "of an expert's share"), ("refused", refused, "steps")]
    yield rows + [(f"loss {at}", loss, "nats a token") for at, loss in enumerate(losses)]
    if jax.devices()[0].platform == "gpu" and steps:
        yield mesh_messages.profiled(program, state, batch, placed)


def meshes(turns: Turns, cases: list[Case], steps: int, plans: pathlib.Path) -> None:
    """Every case in its turn. plans: results of `plans`, against which each case is held where they have it."""
    ahead, found = _of_subjects(plans), {}
    for worker, _ in turns.ready([Training(case, steps) for case in cases]):
        case = worker.job.case
        if values := turns.turn(worker):
            if case.scaling != "bound":
                found[case] = values
                turns.add(case.name, [*_compared(case, values, found), *_beside_plan(values, ahead.get(case.name, {}))])
            turns.tell(f"{case.name}: {_line(values)}")


def _line(values: dict[str, float]) -> str:
    if "step" not in values:
        return f"losses may differ by {values['difference']:.1e}"
    return (
        f"{values['speed']:,.0f} tokens/s, {values['step']:.3f} s (planned {values['planned best']:.3f} to "
        f"{values['planned worst']:.3f}), memory {values['memory']:.1f} (by shapes {values['planned by shapes']:.1f}, "
        f"peak {values.get('peak', math.nan):.1f}) GiB, last loss {[*_losses(values).values()][-1]:.5f}"
    )


def _losses(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name.startswith("loss ")}


def _compared(case: Case, values: dict[str, float], found: dict[Case, dict[str, float]]) -> Rows:
    """Against one GPU; losses against the first case of the same rows, of the same number of experts."""
    alone = found.get(dataclasses.replace(case, mesh=()))
    rows: Rows = [("against one", values["speed"] / alone["speed"], "ratio")] if alone and case.mesh else []
    alike = (other for other in found if (other.scaling, _experts(other)) == (case.scaling, _experts(case)))
    first, losses = next(alike), _losses(values)
    if first != case:
        apart = max(abs(loss / found[first][name] - 1) for name, loss in losses.items())
        rows.append(("difference", apart, "relative"))
    return rows


def _experts(case: Case) -> tuple[str, int]:
    return case.shape, config_of(case).model.num_experts


def _beside_plan(values: dict[str, float], plan: dict[str, float]) -> Rows:
    """planned / measured: of a plan compiled ahead, memory, the bound of a step and each collective's bytes."""
    pairs = {"memory": "planned memory", "step": "planned best"}
    pairs |= {name: name for name in values if " over " in name and not name.endswith((" beside work", " number"))}
    return [
        (f"{name}, planned/measured", plan[of] / values[name], "ratio")
        for name, of in pairs.items()
        if of in plan and values.get(name)
    ]


def _of_subjects(path: pathlib.Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in read(path) if path.exists() else ():
        found.setdefault(row.subject, {})[row.quantity] = row.value
    return found


def longest(turns: Turns, cases: list[Case], devices: int) -> None:
    """The longest row of `cases` (shortest first, of one GPU) that one GPU trains, and the longest that all do, each
    GPU with as many tokens; what the compiler counts to be too large is not tried.
    """
    speeds = {}
    for mesh in ((), (("sequence", devices),)):
        tried = [dataclasses.replace(case, mesh=mesh) for case in reversed(cases)]
        for worker, compiled in turns.ready([Training(case, 0) for case in tried]):
            case = worker.job.case
            if compiled.gib > turns.devices.gib:
                turns.tell(f"{case.name}: does not fit: {compiled.gib:.1f} of {turns.devices.gib:.1f} GiB")
            elif values := turns.turn(worker):
                speeds[mesh] = values["speed"]
                if mesh and () in speeds:
                    turns.add(case.name, [("against one", values["speed"] / speeds[()], "ratio")])
                turns.tell(f"{case.name}: {_line(values)}")
                break
