"""The plans of all meshes for H200s that are not here, each compiled in a process of its own; nothing is run."""

import multiprocessing
import time

from benchmarks.results import Report, processor
from benchmarks.scaling.cases import Case, config_of
from benchmarks.scaling.planned import GIB, Rows, messages, seconds
from mm01_jax.config.mesh import sharding_problems


def measure(report: Report, cases: list[Case], *, compile_it: bool) -> None:
    """Adds the rows of each case when they are known; one that cannot be is said."""
    began, spawn = time.monotonic(), multiprocessing.get_context("spawn")
    for number, case in enumerate(cases, 1):
        if problems := sharding_problems(config_of(case)):
            print(f"{case.name}: no such plan: {problems[0]}", flush=True)
            continue
        with spawn.Pool(1) as pool:  # a compiler's memory goes with its process
            try:
                rows, fits = pool.apply(planned, (case, compile_it))
            except Exception as error:  # the other plans are worth having
                print(f"{case.name}: not planned: {type(error).__name__}: {str(error)[:300]}", flush=True)
                continue
        for quantity, value, unit in rows:
            report.add(f"{case.name}: {quantity}", value, unit, device=_device(case, compile_it=compile_it))
        told, spent = {quantity: value for quantity, value, _ in rows}, time.monotonic() - began
        print(
            f"{case.name}: {told['planned memory']:.1f} GiB{'' if fits else ', which does not fit'}, "
            f"{told.get('planned best', 0):.3f} to {told.get('planned worst', 0):.3f} s; "
            f"{number} of {len(cases)} in {spent:.0f} s, {spent / number * (len(cases) - number):.0f} s to go",
            flush=True,
        )


def _device(case: Case, *, compile_it: bool) -> str:
    return f"h200-{case.devices}, {'compiled' if compile_it else 'by shapes'} on {processor()}"


def planned(case: Case, compile_it: bool) -> tuple[Rows, bool]:
    """(rows, whether it fits)."""
    from mm01_jax.plan import planner, targets
    from mm01_jax.plan.hlo.collectives import Messages

    target = targets.parse(f"h200-{case.devices}")
    plan = planner.make_plan("train", config_of(case), target, compile_it=compile_it)
    shapes = sum(plan.arguments.values()) + sum(plan.estimated.values())
    rows: Rows = [("planned by shapes", shapes / GIB, "GiB/GPU"), ("planned memory", plan.needed / GIB, "GiB/GPU")]
    rows.append(("planned FLOP", plan.counts.flops, "FLOP/GPU"))
    if plan.times is None:
        return rows, plan.fits
    rows += seconds(plan.times)
    rows += [(f"planned MFU {name}", 100 * plan.mfu(getattr(plan.times, of)), "%") for name, of in _MFU.items()]
    took = plan.compiled.seconds
    rows += [("compile", took["compile"], "s"), ("processor", took["processor"], "s")]
    return rows + messages(Messages(plan.messages, plan.overlapped)), plan.fits


_MFU = {"best": "best", "as shown": "shown", "worst": "worst"}
