"""One case of benchmarks/scaling.py, in a process of its own: a shape on a mesh, compiled, planned, then timed."""

import dataclasses
import functools
import math
import os
import statistics
import time
import traceback

from mm01_jax.config import MESH_AXES, Config, ConfigError
from mm01_jax.config.mesh import sharding_problems

SHAPES = ("bench_1b", "text_01_period", "tiny")
ROWS = 4  # of one GPU
PERIOD_EXPERTS = 4  # of one period of text_01: what one H200 trains with weights and moments in bfloat16
PERIOD_VOCABULARY = 32_768


@dataclasses.dataclass(frozen=True)
class Case:
    """One process: a shape on a mesh (axis -> size; empty: one GPU)."""

    shape: str
    scaling: str
    mesh: tuple[tuple[str, int], ...]

    @property
    def devices(self) -> int:
        return math.prod(size for _, size in self.mesh)

    @property
    def name(self) -> str:
        mesh = " x ".join(f"{axis} {size}" for axis, size in self.mesh) or "one GPU"
        return f"{self.shape}, {self.scaling}, {mesh}"


def config_of(case: Case) -> Config:
    """The case's config; mixers' outputs at a quarter, as benchmarks/mesh.py says why."""
    from benchmarks import mesh
    from configs import text_01

    if case.shape == "text_01_period":
        config = text_01.get_config()
        model = dataclasses.replace(
            config.model,
            num_periods=1,
            num_experts=PERIOD_EXPERTS,
            vocab_size=PERIOD_VOCABULARY,
            lightning_beta=mesh.MIXERS,
            softmax_beta=mesh.MIXERS,
        )
        compute = dataclasses.replace(
            config.compute, param_dtype="bfloat16", exchange_groups=1, sequence_layout="zigzag"
        )
        sizes = dict.fromkeys(MESH_AXES, 1) | dict(case.mesh)
        train = dataclasses.replace(config.train, batch_size=ROWS, loss_chunk=2048)
        config = dataclasses.replace(
            config, model=model, compute=compute, mesh=dataclasses.replace(config.mesh, **sizes), train=train
        )
    else:
        config = mesh.configured(dict(case.mesh), shapes=case.shape)
    rows = ROWS * (case.devices if case.scaling == "weak" else 1)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=rows))


def work(case: Case, steps: int, pipe) -> None:
    """A case's process: compiles, says so, waits for its turn, runs. Sends (kind, content) pairs."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # cases share the GPUs
    try:
        _work(case, steps, pipe)
    except Exception as error:  # the other cases are worth having
        lines = traceback.format_exception_only(error)
        pipe.send(("failed", f"{type(error).__name__}: {lines[-1].strip()[:400]}"))


def _work(case: Case, steps: int, pipe) -> None:
    import jax

    from benchmarks import mesh
    from mm01_jax.parallel.overlap import compiler_options

    config = config_of(case)
    if problems := sharding_problems(config):
        raise ConfigError(problems)
    began = time.monotonic()
    if case.scaling == "bound":
        narrow, wide = (mesh.first_losses(config, dtype, steps + 1) for dtype in ("bfloat16", "float32"))
        pipe.send(("rows", [("difference", 2 * mesh.apart(narrow, wide), "relative")]))
        return
    placed, programs, planned = _traced(config)
    traced = time.monotonic() - began
    options = compiler_options(jax.devices()[0].platform)
    program, initial = (lowered.compile(compiler_options=options) for lowered in programs)
    compiled = time.monotonic() - began - traced
    quantities = [("trace", traced, "s"), ("compile", compiled, "s"), *planned(program)]
    pipe.send(("compiled", (traced, compiled, mesh.gib(program))))
    if pipe.recv() != "go":
        return
    pipe.send(("rows", quantities + _run(config, placed, program, initial, steps)))


def _traced(config: Config):
    """(mesh, (step, initial state) lowered, the planner's rows as a function of the compiled step)."""
    import jax

    from benchmarks import mesh
    from mm01_jax.model.remat import with_remat_settled
    from mm01_jax.plan import memory, planner
    from mm01_jax.plan.steps import make_step
    from mm01_jax.plan.traced_work import Assumed, count

    placed, programs = mesh.trace(config)
    with jax.set_mesh(placed):
        step = make_step("train", config, placed)
        config = with_remat_settled(config, step.arguments[0], lambda _: None)  # as what was traced
        step = make_step("train", config, placed)
        assumed = Assumed(planner._balanced_rows(config, step), planner._pairs_computed("train", config))
        counts = count(step.function.trace(*step.arguments).jaxpr, dict(placed.shape), assumed)
        given = memory.per_chip(step)
        made = memory.estimated("train", config, step.tokens, given["parameters"])
    shapes = (sum(given.values()) + sum(made.values())) / 2**30
    return placed, programs, functools.partial(_planned, config, placed, counts, assumed, shapes)


def _planned(config: Config, placed, counts, assumed, shapes: float, program) -> list[tuple]:
    from mm01_jax.plan import roofline, targets
    from mm01_jax.plan.hlo import collectives, traffic
    from mm01_jax.plan.hlo.text import parse

    text = parse(program.as_text())
    found = collectives.find(text, dict(placed.shape))
    target = targets.parse(f"h200-{placed.size}")
    moved = traffic.bytes_moved(text, assumed.branch_share)
    times = roofline.times(target, dict(placed.shape), counts.flops, moved, found.counts)
    rows = [
        ("planned by shapes", shapes, "GiB/GPU"),
        ("planned arithmetic", times.compute, "s"),
        ("planned memory traffic", times.memory, "s"),
        ("planned messages", times.messages, "s"),
        ("planned best", times.best, "s"),
        ("planned worst", times.worst, "s"),
    ]
    sent: dict[tuple, list[float]] = {}
    for one, times_sent in found.counts.items():
        entry = sent.setdefault((one.kind, "+".join(one.axes)), [0.0, 0.0, 0.0])
        hidden = found.overlapped[one]
        entry[0] += one.bytes * times_sent / 2**20
        entry[1] += one.bytes * hidden / 2**20
        entry[2] += times_sent
    for (kind, axes), (size, hidden, number) in sorted(sent.items(), key=lambda item: -item[1][0]):
        rows.append((f"{kind} over {axes}", size, "MiB/GPU"))
        rows.append((f"{kind} over {axes} beside work", hidden, "MiB/GPU"))
        rows.append((f"{kind} over {axes} number", number, ""))
    return rows


def _run(config: Config, placed, program, initial, steps: int) -> list[tuple]:
    import jax

    from benchmarks import mesh
    from mm01_jax.chips import peak_flops

    state = initial(jax.random.key(config.train.seed))
    losses, seconds, load, refused = [], [], 0.0, 0.0
    for number in range(steps + 1):  # the first warms up
        batch = mesh.place(mesh.rows(config, number), config, placed)
        jax.block_until_ready((state, batch))
        start = time.monotonic()
        state, metrics = program(state, batch)
        losses.append(float(metrics["loss"]))  # waits
        seconds.append(time.monotonic() - start)
        load = max(load, float(metrics["expert_load"].max()))
        refused += float(metrics["refused"])
    step = statistics.median(seconds[1:])
    tokens = config.train.batch_size * config.train.sequence_length
    rows = [("rows", config.train.batch_size, ""), ("length", config.train.sequence_length, "tokens")]
    rows += [("speed", tokens / step, "tokens/s"), ("step", step, "s"), ("memory", mesh.gib(program), "GiB/GPU")]
    if stats := jax.local_devices()[0].memory_stats():
        rows.append(("peak", stats["peak_bytes_in_use"] / 2**30, "GiB/GPU"))
    if peak_flops(jax.devices()[0].device_kind):
        rows.append(("MFU", 100 * mesh.mfu(config, tokens / step), "%"))
    rows += [("load", load, "of an expert's share"), ("refused", refused, "steps")]
    rows += [(f"loss {at}", loss, "nats a token") for at, loss in enumerate(losses)]
    return rows
