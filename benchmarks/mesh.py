"""The 1 B shape trained on one GPU and on two, each mesh axis at 2; and a row twice as long as one GPU holds on two.

    python -m benchmarks.mesh [--json=benchmarks/results/mesh.json]
    JAX_NUM_CPU_DEVICES=2 python -m benchmarks.mesh --shapes=tiny --lengths=     does it work at all

All programs compile at once, then they run one after another from the same state on the same batches; two steps of each
are profiled. Rows are written when they are known; a case that fails, or is left when `--minutes` are over, is named.

Routers of random weights are unbalanced by what the tokens of a document have in common, more so the longer it is:
with mixers at full strength documents of 2048 tokens load an expert with 3 times its share, and the step is refused.
So mixers add a quarter of their output to the residual here, in every case; the work is the same.
"""

import concurrent.futures
import dataclasses
import functools
import os
import sys
import time

import jax

from benchmarks import mesh_messages, mesh_steps
from benchmarks.mesh_rows import first_losses, rows
from benchmarks.results import Report, add_json, device
from configs import bench_1b, tiny
from mm01_jax import sharding
from mm01_jax.chips import peak_flops
from mm01_jax.config import MESH_AXES, Config
from mm01_jax.model.flops import train_flops_per_token
from mm01_jax.model.remat import with_remat_settled
from mm01_jax.parallel.overlap import compiler_options
from mm01_jax.train import step
from tests.command_line import Parser, list_of_whole, one_of, whole

SHAPES = {"bench_1b": bench_1b.get_config, "tiny": tiny.get_config}
CASES = ({}, {"data": 2}, {"expert": 2}, {"sequence": 2}, {"tensor": 2})
# What a mesh with an axis lays over it, beside what every config does (docs/sharding.md).
RULES = {
    "sequence": {"embed": ("data", "sequence")},
    "tensor": {"act_seq": ("tensor",), "expert": ("expert", "tensor"), "ffn": ()},
}
SHARD_BOUND = 1.125  # times the balanced load that rows for one expert shard may come to; seen: 1.04
MIXERS = 0.25  # of their output that goes into the residual


@dataclasses.dataclass(frozen=True)
class Job:
    """One case, its programs being compiled: (step, initial state), with the seconds that took."""

    name: str
    config: Config
    mesh: jax.sharding.Mesh
    compiled: concurrent.futures.Future


@dataclasses.dataclass(frozen=True)
class Result:
    tokens_per_second: float
    losses: list[float]


class Bench:
    """One report, one time limit, one pool of compilers."""

    def __init__(self, report: Report, minutes: float):
        self.report, self.minutes, self.began = report, minutes, time.monotonic()
        self.deadline = self.began + 60 * minutes
        self.pool = concurrent.futures.ThreadPoolExecutor(max_workers=8)

    def tell(self, line: str) -> None:
        print(f"[{time.monotonic() - self.began:4.0f} s] {line}", flush=True)

    def add(self, subject: str, quantity: str, value, unit: str = "") -> None:
        self.tell(f"{subject}: {quantity} {value:,.6g} {unit}".rstrip())
        self.report.add(f"{subject}: {quantity}", value, unit, device=device())

    def start(self, config: Config, *, twice: bool = False) -> Job:
        """Traces here (one thread holds Python anyway), compiles beside."""
        sizes = {axis: getattr(config.mesh, axis) for axis in MESH_AXES if getattr(config.mesh, axis) > 1}
        name = ", ".join(f"{axis} {size}" for axis, size in sizes.items()) or "one GPU"
        name = name if config.train.batch_size > 1 else f"{name}, one row of {config.train.sequence_length:,}"
        name = f"{name}, twice the rows" if twice else name
        began = time.monotonic()
        mesh, programs = trace(config)
        self.tell(f"{name}: traced and lowered in {time.monotonic() - began:.0f} s")
        options = compiler_options(jax.devices()[0].platform, config.compute.collectives)
        return Job(name, config, mesh, self.pool.submit(self._compile, name, programs, options))

    def _compile(self, name: str, programs, options):
        began = time.monotonic()
        compiled = [program.compile(compiler_options=options) for program in programs]
        self.tell(f"{name}: compiled in {time.monotonic() - began:.0f} s, {gib(compiled[0]):.1f} GiB")
        return *compiled, time.monotonic() - began

    def case(self, job: Job, alone: Result | None, *, steps: int, warm: bool = True) -> Result | None:
        """Runs one case and adds its rows; a failure is said."""
        try:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no time left")
            return self._measure(job, job.compiled.result(left), alone, steps, warm)
        except Exception as error:  # the other cases are worth having
            self.tell(f"{job.name}: not run: {type(error).__name__}: {str(error)[:300]!r}")
            return None

    def _measure(self, job: Job, compiled, alone: Result | None, steps: int, warm: bool) -> Result:
        program, initial, seconds_to_compile = compiled
        config = job.config
        state, batch, ran = mesh_steps.ran(
            config,
            job.mesh,
            program,
            initial(jax.random.key(config.train.seed)),
            steps=steps,
            warm=warm,
            tell=lambda line: self.tell(f"{job.name}: {line}"),
        )
        speed = config.train.batch_size * config.train.sequence_length / ran.second
        add = functools.partial(self.add, job.name)
        add("rows", config.train.batch_size)
        add("length", config.train.sequence_length, "tokens")
        add("speed", speed, "tokens/s")
        if alone:
            add("against one", speed / alone.tokens_per_second, "ratio")
        if peak_flops(jax.devices()[0].device_kind):
            add("MFU", 100 * mfu(config, speed), "%")
        add("step", ran.second, "s")
        add("memory", gib(program), "GiB/GPU")
        add("compile", seconds_to_compile, "s")
        add("load", max(ran.loads), "of an expert's share")
        add("first loss", ran.losses[0], "nats a token")
        add("last loss", ran.losses[-1], "nats a token")
        if ran.refused:
            add("steps refused", ran.refused)
        if alone and len(alone.losses) == len(ran.losses):  # the same rows
            add("difference", apart(ran.losses, alone.losses), "relative")
        if jax.devices()[0].platform == "gpu" and warm:
            for quantity, value, unit in mesh_messages.profiled(program, state, batch, job.mesh):
                add(quantity, value, unit)
        return Result(speed, ran.losses)


def trace(config: Config):
    """(mesh, (the step, the initial state)), lowered for the first devices, as many as the mesh has."""
    mesh = sharding.make_mesh(config.mesh, jax.devices()[: devices_of(config)])
    with jax.set_mesh(mesh):
        config = with_remat_settled(config, step.abstract_state(config, mesh), lambda _: None)
        state = step.abstract_state(config, mesh)  # a model carries the settings that it was made with
        placed = jax.tree.map(lambda x: x.sharding, state)
        where = sharding.named(mesh, config.mesh.rules, "batch", "seq")
        shape = (config.train.batch_size, config.train.sequence_length)
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(shape, x.dtype, sharding=where), rows(config, 0, 1))
        train = functools.partial(step.train_step, config=config)
        jitted = jax.jit(train, donate_argnums=0, out_shardings=(placed, None))
        initial = jax.jit(functools.partial(step.init_state, config), out_shardings=placed)
        return mesh, (jitted.lower(state, batch), initial.lower(jax.random.key(0)))


def devices_of(config: Config) -> int:
    return config.mesh.data * config.mesh.expert * config.mesh.tensor * config.mesh.sequence


def gib(compiled) -> float:
    memory = compiled.memory_analysis()
    return (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30


def mfu(config: Config, speed: float) -> float:
    peak = peak_flops(jax.devices()[0].device_kind)
    return speed * train_flops_per_token(config.model, config.train.sequence_length) / (peak * devices_of(config))


def apart(losses: list[float], others: list[float]) -> float:
    return max(abs(a / b - 1) for a, b in zip(losses, others, strict=True))


def configured(
    mesh: dict[str, int], length: int | None = None, shapes: str = "bench_1b", *, times: float = 1
) -> Config:
    """The benchmark's config on a mesh; with a length, of one row; else with so many times its rows."""
    config = SHAPES[shapes]()
    size = {"batch_size": 1, "sequence_length": length} if length else {}
    size = size or {"batch_size": int(times * config.train.batch_size)}
    rules = {name: axes for axis in mesh if mesh[axis] > 1 for name, axes in RULES.get(axis, {}).items()}
    bound = None if config.compute.dropless_bound is None else SHARD_BOUND
    return dataclasses.replace(
        config,
        mesh=dataclasses.replace(config.mesh, **mesh, rules=dataclasses.replace(config.mesh.rules, **rules)),
        train=dataclasses.replace(config.train, **size),
        model=dataclasses.replace(config.model, lightning_beta=MIXERS, softmax_beta=MIXERS),
        compute=dataclasses.replace(config.compute, sequence_layout="zigzag", dropless_shard_bound=bound),
    )


def memory_limit() -> int:
    """Bytes of one device that jax may hand out; of a CPU nobody says."""
    return (jax.devices()[0].memory_stats() or {"bytes_limit": 2**63})["bytes_limit"]


def long_rows(bench: Bench, pairs: list[tuple[Job, Job | None]]) -> None:
    """The longest row of `pairs`, shortest first, that one GPU trains; and twice it on two. What the compiler counts to
    be too large is not tried; what then does not find its memory in one piece gives way to the next shorter one.
    """
    for single, double in reversed(pairs):
        try:
            need = gib(single.compiled.result(max(0, bench.deadline - time.monotonic()))[0])
        except Exception as error:  # a compiler may refuse what does not fit
            bench.tell(f"{single.name}: not compiled: {type(error).__name__}: {str(error)[:300]!r}")
            continue
        if need > memory_limit() / 2**30:
            bench.tell(f"{single.name}: does not fit: {need:.1f} of {memory_limit() / 2**30:.1f} GiB")
            continue
        alone = bench.case(single, None, steps=1, warm=False)  # a step takes long enough to be measured at once
        if alone and double:
            speed = Result(alone.tokens_per_second, [])  # other rows, other losses
            alone = bench.case(double, speed, steps=1, warm=False)
        if alone:
            return


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.mesh", __doc__)
    add_json(parser)
    parser.add_argument("--shapes", type=one_of("shapes", SHAPES), default="bench_1b", help="bench_1b or tiny")
    parser.add_argument("--steps", type=whole(1), default=8)
    parser.add_argument("--minutes", type=float, default=8.0, help="no case begins after that")
    parser.add_argument(
        "--lengths", type=list_of_whole(1), default="360448,425984,475136", help="of one row, rising; or empty"
    )
    parser.add_argument("--compile-only", action="store_true", help="fills the compile cache, runs nothing")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")  # the rest is for NCCL
    bench = Bench(Report(arguments.json, "benchmarks.mesh", argv), arguments.minutes)
    told = functools.partial(configured, shapes=arguments.shapes)
    measure(bench, told, arguments.steps, arguments.lengths, compile_only=arguments.compile_only)
    return 0


def measure(bench: Bench, configured, steps: int, lengths: list[int], *, compile_only: bool = False) -> None:
    two = jax.device_count() > 1
    jobs = [bench.start(configured(case)) for case in CASES if two or not case]
    if two:  # as many rows a GPU as one has alone
        jobs += [bench.start(configured(case, times=2), twice=True) for case in CASES[1:4]]
    reference = [bench.pool.submit(first_losses, jobs[0].config, dtype, steps) for dtype in ("bfloat16", "float32")]
    pairs = [
        (bench.start(configured({}, length)), bench.start(configured({"sequence": 2}, 2 * length)) if two else None)
        for length in lengths
    ]
    programs = [job.compiled for job in (*jobs, *(job for pair in pairs for job in pair if job))]
    late = concurrent.futures.wait([*programs, *reference], 30 * bench.minutes).not_done  # half of the time
    bench.tell(f"{len(programs) + len(reference) - len(late)} programs compiled, {len(late)} not yet")
    try:
        bench.add("bound of losses", "difference", 2 * apart(*(done.result(1) for done in reference)), "relative")
    except Exception as error:  # the cases are worth having
        bench.tell(f"the bound of losses was not measured: {type(error).__name__}: {str(error)[:300]!r}")
    alone = None
    if compile_only:
        return
    for job in jobs:
        others = job.config.train.batch_size != jobs[0].config.train.batch_size
        same = Result(alone.tokens_per_second, []) if alone and others else alone  # other rows, other losses
        result = bench.case(job, same, steps=steps)
        alone = alone or result
    long_rows(bench, pairs)


if __name__ == "__main__":
    sys.exit(main())
