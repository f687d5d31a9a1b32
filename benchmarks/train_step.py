"""A training step, or a part of one, on one GPU: tokens/s, MFU, where the time goes, peers in the same run.

    python -m benchmarks.train_step --peer=jla,jla-head --json=FILE --picture=docs/train_step.svg
    python -m benchmarks.train_step --part=experts --width=2048 --experts=8 --expert-width=3072 --rows=1 --peer=torch
    python -m benchmarks.train_step --part=forward_backward --config=benchmarks/peer_shape.py --peer=transformers
    python -m benchmarks.train_step --config=configs/text_01.py --part=period --rows=1 --experts=16
    python -m benchmarks.train_step --layers=lightning --length=8192,32768 --whole-documents --rows=8 --remat=full

All programs compile at once; then each runs alone: its first loss is compared with that of another remat, then batches
of steps are timed, then two are profiled. With several lengths a step has as many tokens as `rows` of the first.
As in `benchmarks.mesh` a quarter of a mixer's output goes into the residual: random routers load evenly then.
"""

import concurrent.futures
import dataclasses
import functools
import gc
import math
import pathlib
import statistics
import sys
import tempfile
import time

import jax

from benchmarks import mesh, train_breakdown, train_parts, train_peers
from benchmarks.kernels.timing import copy_bytes_per_second
from benchmarks.results import Report, add_json, device, say_where
from mm01_jax import scopes
from mm01_jax.chips import peak_flops
from mm01_jax.config import Config, MeshConfig, command_line
from mm01_jax.parallel.overlap import compiler_options
from tests.command_line import Parser, list_of, list_of_whole, one_of, whole

LAYERS = ("hybrid", "lightning", "softmax")
SIZES = ("width", "experts", "expert-width")
REMATS = ("none", "named", "dots", "full")
STEPS, BATCHES = 8, 3  # timed together, where that takes no longer than SECONDS; so many times
SECONDS = 1.0
# Without command buffers, of which a profile knows no parts; other platforms have none.
UNGRAPHED = {"xla_gpu_graph_min_graph_size": 1_000_000}
# Losses of two remats may differ by the rounding of bfloat16, in which the models multiply (bench of meshes).
DIFFERENCE = 4e-6


@dataclasses.dataclass(frozen=True)
class Case:
    """One program, being compiled."""

    subject: str
    peer: str | None
    config: Config
    part: train_parts.Part
    seconds_to_lower: float
    compiled: concurrent.futures.Future
    profiled: concurrent.futures.Future | None  # the same program, whose kernels a profile can name; None: no profile


def configured(arguments, length: int, remat: str) -> Config:
    """The config that is measured, on one device."""
    config = command_line.load_config(arguments.config)
    model, train, compute = config.model, config.train, config.compute
    kinds = {"hybrid": model.period}.get(arguments.layers, (arguments.layers,) * len(model.period))
    sizes = {"embed_dim": arguments.width, "num_experts": arguments.experts, "expert_dim": arguments.expert_width}
    model = dataclasses.replace(
        model,
        period=kinds,
        lightning_beta=mesh.MIXERS,
        softmax_beta=mesh.MIXERS,
        **{name: size for name, size in sizes.items() if size},
    )
    rows = arguments.rows or train.batch_size
    rows = max(1, rows * arguments.length[0] // length) if arguments.length else rows
    bare = arguments.part != "step"  # weights as the products take them, no step to refuse
    compute = dataclasses.replace(
        compute,
        remat=remat,
        sequence_layout="contiguous",
        exchange_groups=1,
        **({"param_dtype": compute.dtype, "dropless_bound": None} if bare else {}),
    )
    train = dataclasses.replace(train, batch_size=rows, sequence_length=length, batch_ramp=(), num_microbatches=1)
    mesh_of_one = MeshConfig(rules=config.mesh.rules)
    return dataclasses.replace(config, model=model, train=train, compute=compute, mesh=mesh_of_one, vision=None)


class Bench:
    """One report, one pool of compilers, the bars of the picture."""

    def __init__(self, report: Report, *, profiles: bool):
        self.report, self.profiles, self.began, self.bars = report, profiles, time.monotonic(), {}
        self.pool = concurrent.futures.ThreadPoolExecutor(max_workers=8)
        self.peak = peak_flops(jax.devices()[0].device_kind)
        self.copy = copy_bytes_per_second(2**30 if self.peak else 2**20)
        self.losses: dict[str, tuple[str, float]] = {}

    def tell(self, line: str) -> None:
        print(f"[{time.monotonic() - self.began:4.0f} s] {line}", flush=True)

    def add(self, case: Case, quantity: str, value, unit: str = "", floor: float | None = None) -> None:
        whose = f" ({case.peer})" if case.peer else ""
        self.tell(f"{case.subject}{whose}: {quantity} {value:,.6g} {unit}".rstrip())
        what = f"{case.subject}: {quantity}"
        self.report.add(what, value, unit, device=device(), floor=floor, peer=case.peer)

    def start(self, subject: str, peer: str | None, config: Config, lower) -> Case:
        """Lowers here, compiles beside."""
        began = time.monotonic()
        part = lower()
        seconds = time.monotonic() - began
        if peer:
            return Case(subject, peer, config, part, seconds, self.pool.submit(_compiled, part.lowered, None), None)
        options = compiler_options(jax.devices()[0].platform)
        compiled = self.pool.submit(_compiled, part.lowered, options)
        profiled = self.pool.submit(_compiled, part.lowered, options | UNGRAPHED) if self.profiles else None
        return Case(subject, peer, config, part, seconds, compiled, profiled)

    def measure(self, case: Case) -> None:
        """Times one program and adds its rows; of one that fails the reason."""
        try:
            compiled, seconds = case.compiled.result()
            self._measure(case, compiled, seconds)
        except Exception as error:  # the other cases are worth having
            self.tell(f"{case.subject} {case.peer or ''}: not run: {type(error).__name__}: {str(error)[:300]!r}")
        gc.collect()

    def _measure(self, case: Case, compiled, seconds_to_compile: float) -> None:
        part, state, losses, times = case.part, case.part.start(), [], []
        while len(losses) < 2 or (len(losses) < 4 and sum(times) < SECONDS):  # the first may make kernels
            part.wait(state)
            began = time.monotonic()
            state, loss = part.run(compiled, state, len(losses))
            losses.append(float(loss))
            times.append(time.monotonic() - began)
        self._check(case, losses[0])
        steps = max(1, min(STEPS, int(SECONDS / times[-1])))
        batches, times = BATCHES if times[-1] < 2 * SECONDS else 1, []
        for _ in range(batches):
            part.wait(state)
            began = time.monotonic()
            for number in range(steps):
                state, loss = part.run(compiled, state, number)
            part.wait((state, loss))
            times.append((time.monotonic() - began) / steps)
        second = statistics.median(times)
        self.add(case, "speed", part.tokens / second, "tokens/s")
        self.add(case, "step", 1e3 * second, "ms")
        self.add(case, "lowering", case.seconds_to_lower, "s")
        self.add(case, "compile", seconds_to_compile, "s")
        self.add(case, "first loss", losses[0])
        if self.peak and part.flops:
            self.add(case, "rate", part.flops / second / 1e12, "TFLOP/s")
            self.add(case, "MFU", 100 * part.flops / second / self.peak, "%")
        if case.peer is None:
            self.add(case, "memory", mesh.gib(compiled), "GiB")
            if case.subject.startswith("step"):
                self.add(case, "softmax's share of the FLOPs", 100 * train_parts.softmax_share(case.config), "%")
        if case.profiled:
            self._profile(case, case.profiled.result()[0], state, second)

    def _check(self, case: Case, loss: float) -> None:
        """Another remat of the same subject's first loss is the same."""
        if not math.isfinite(loss):
            raise ArithmeticError(f"the first loss is {loss}")
        if case.peer or not case.subject.startswith("step"):
            return
        name, remat = case.subject.rpartition(", remat ")[::2]
        other, expected = self.losses.setdefault(name, (remat, loss))
        if abs(loss / expected - 1) > DIFFERENCE:
            raise ArithmeticError(f"first loss {loss} with remat {remat}, {expected} with {other}")

    def _profile(self, case: Case, compiled, state, second: float) -> None:
        """Where the time goes, of two calls."""
        with tempfile.TemporaryDirectory() as folder:
            with scopes.traced(folder):
                for number in range(2):
                    state, loss = case.part.run(compiled, state, number)
                jax.block_until_ready((state, loss))
            scopes.save_program(folder, compiled)
            times = scopes.read(folder)
        floors = {}
        if self.peak and case.subject.startswith("step"):
            weights = train_parts.abstract_weights(case.config)
            floors = train_breakdown.floors(case.config, weights, self.peak, self.copy)
        shares = train_breakdown.shares(times, 2, 1e3 * second, floors)
        for share in shares:
            self.add(case, f"time of {share.part}", share.ms, "ms", share.floor)
        for line in train_breakdown.lines(shares):
            self.tell(line)
        self.bars[case.subject.removeprefix("step ")] = shares


def _compiled(lowered, options: dict | None):
    """(the program, seconds that took)."""
    began = time.monotonic()
    compiled = lowered.compile() if options is None else lowered.compile(compiler_options=options)
    return compiled, time.monotonic() - began


def cases(bench: Bench, arguments) -> list[Case]:
    """Ours by remat and length, then the peers; the dearest to compile, theirs, first."""
    found = []
    lengths = arguments.length or [command_line.load_config(arguments.config).train.sequence_length]
    for length in lengths:
        for peer in (train_peers.PEERS[name] for name in arguments.peer):
            config = configured(arguments, length, "full")
            subject = _subject(arguments, config)
            found.append(bench.start(subject, peer.title, config, lambda c=config, p=peer: p.make(c)))
        for remat in arguments.remat:
            config = configured(arguments, length, remat)
            lower = train_parts.PARTS[arguments.part]
            if arguments.whole_documents:
                lower = functools.partial(train_parts.training_step, document=length)
            subject = f"{_subject(arguments, config)}, remat {remat}"
            found.append(bench.start(subject, None, config, lambda c=config, f=lower: f(c)))
    return found


def _subject(arguments, config: Config) -> str:
    name = config.name if arguments.layers == "hybrid" else f"{config.name} of {arguments.layers}"
    name += " whole" * arguments.whole_documents
    changed = [f", {size} {getattr(arguments, size.replace('-', '_'))}" for size in SIZES]
    changed = [text for text in changed if not text.endswith(" None")]
    return f"{arguments.part} {name} {config.train.batch_size}x{config.train.sequence_length}{''.join(changed)}"


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.train_step", __doc__)
    add_json(parser)
    parser.add_argument("--config", default="configs/bench_1b.py")
    parts = train_parts.PARTS
    parser.add_argument("--part", type=one_of("parts", parts), default="step", help=", ".join(parts))
    parser.add_argument("--layers", type=one_of("layers", LAYERS), default="hybrid", help=", ".join(LAYERS))
    parser.add_argument("--remat", type=list_of("remats", REMATS), default=["none"], help="of " + ", ".join(REMATS))
    parser.add_argument(
        "--peer", type=list_of("peers", train_peers.PEERS), default=[], help="of " + ", ".join(train_peers.PEERS)
    )
    parser.add_argument("--length", type=list_of_whole(1), default=[], help="tokens of a row")
    for name in ("rows", *SIZES):
        parser.add_argument(f"--{name}", type=whole(1), help="instead of the config's")
    parser.add_argument("--picture", metavar="FILE", help="stacked bars, SVG")
    parser.add_argument("--whole-documents", action="store_true", help="a row is one document, not several; of a step")
    parser.add_argument("--no-profile", action="store_true", help="speeds alone")
    arguments = parser.parse_args(argv)
    for name in arguments.peer:
        if train_peers.PEERS[name].part != arguments.part:
            parser.error(f"--peer={name} is a peer of --part={train_peers.PEERS[name].part}, not of {arguments.part}")
    if arguments.whole_documents and arguments.part != "step":
        parser.error(f"--whole-documents is of --part=step, not of --part={arguments.part}")
    say_where()
    bench = Bench(Report(arguments.json, "benchmarks.train_step", argv), profiles=not arguments.no_profile)
    started = cases(bench, arguments)
    compiling = [future for case in started for future in (case.compiled, case.profiled) if future]
    concurrent.futures.wait(compiling)  # nothing is timed beside a compiler
    for case in started:
        bench.measure(case)
    if arguments.picture and bench.bars:
        pathlib.Path(arguments.picture).write_text(train_breakdown.picture(bench.bars))
    return 0


if __name__ == "__main__":
    sys.exit(main())
