"""Training with its data loading on, beside the bench's step: tokens/s of one program in one process on one GPU.

    mm01-tokenize --source=texts --tokenizer=tokenizer.json --out=tokens
    python -m benchmarks.train_data --source=tokens [--json=FILE] [--seconds=50]

The program is that of `benchmarks.train_step` (remat none). It is fed in turns by the bench (batches that lie on the
device, eight steps dispatched one behind the other): its own rows, those of the data, and the data's documents with the
bench's ids; then by the loop of mm01-train, from a folder of tokens and with the same rows made before. What loading
costs is seen where the rows are the same: a step's speed depends on how long its documents are. Nothing is saved. The
first rows' digest is to be compared with the text's.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np

from benchmarks import mesh as meshes
from benchmarks import results
from mm01_jax import checkpoint, sharding
from mm01_jax.config import Config, MeshConfig, command_line
from mm01_jax.data import pipeline
from mm01_jax.data.batch import Batch
from mm01_jax.data.dataset import Dataset, open_dataset
from mm01_jax.parallel.overlap import compiler_options
from mm01_jax.train import loop, step
from mm01_jax.train.metrics_file import read_metrics
from mm01_jax.train.preemption import Preemption
from mm01_jax.train.start import Start
from tests.command_line import Parser, whole

TOGETHER = 8  # steps of the bench that are dispatched one behind the other
WARM = 5  # steps of a loop before those that count
DIGEST_ROWS = 64
BENCH, SAME_ROWS, SAME_DOCUMENTS = "bench", "bench, the data's rows", "bench, its ids in the data's documents"


def configured(arguments) -> Config:
    """The config of `benchmarks.train_step` with data, evaluations and saves left out."""
    config = command_line.load_config(arguments.config)
    folder = pathlib.Path(arguments.source)
    beside = folder / "tokenizer.json"
    tokenizer = str(beside) if beside.is_file() else "bytes"
    model = dataclasses.replace(config.model, lightning_beta=meshes.MIXERS, softmax_beta=meshes.MIXERS)
    kept = {"remat": "none", "sequence_layout": "contiguous", "exchange_groups": 1}
    compute = dataclasses.replace(config.compute, dropless_bound=None, **kept)  # experts of one device take any load
    data = dataclasses.replace(config.data, source=str(folder), tokenizer=tokenizer, held_out=0.0)
    train = dataclasses.replace(
        config.train, batch_ramp=(), num_microbatches=1, log_every=1, max_nonfinite_steps=10**6, tensorboard=False
    )
    mesh = MeshConfig(rules=config.mesh.rules)
    return dataclasses.replace(config, model=model, compute=compute, data=data, train=train, mesh=mesh, vision=None)


def compiled(config: Config, mesh: jax.sharding.Mesh, tell) -> tuple:
    """(the step, the initial state, its key): programs, compiled at once; nothing is put on a device."""
    state = step.abstract_state(config, mesh)
    placed = jax.tree.map(lambda x: x.sharding, state)
    where = sharding.named(mesh, config.mesh.rules, "batch", "seq")
    shape = config.train.batch_size, config.train.sequence_length
    rows = meshes.rows(config, 0, 1)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(shape, x.dtype, sharding=where), rows)
    train = functools.partial(step.train_step, config=config)
    options = compiler_options(mesh.devices.flat[0].platform)
    key = jax.random.key(config.train.seed)
    initial = jax.jit(functools.partial(step.init_state, config), out_shardings=placed)
    train = jax.jit(train, donate_argnums=0, out_shardings=(placed, None), compiler_options=options)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        lowered = initial.lower(key)
        first = pool.submit(lowered.compile)
        lowered = train.lower(state, batch)
        tell("the step is lowered")
        programs = lowered.compile(), first.result(), key
    tell("both programs are compiled")
    return programs


class Unsaved(loop._Loop):
    """The loop of training, its step a given program, its saves left out; its batches may be made before."""

    made: list[Batch] | None = None

    def _save(self, *, must: bool) -> None:
        del must

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        if self.made is None:
            return super()._batches()
        size = self.config.train.batch_size
        return ((self.row + (n + 1) * size, batch) for n, batch in enumerate(itertools.cycle(self.made)))


class Bench:
    """One program, its state, and who feeds it."""

    def __init__(self, config: Config, dataset: Dataset, programs: tuple, mesh: jax.sharding.Mesh, report):
        self.config, self.dataset, self.mesh, self.report = config, dataset, mesh, report
        self.step, initial, key = programs
        self.state, self.placed = initial(key), {}
        train = config.train
        self.tokens = train.batch_size * train.sequence_length
        self.speeds: dict[str, list[float]] = {}
        self.subject = f"step {config.name} {train.batch_size}x{train.sequence_length}, remat none"

    def bench(self, name: str, rows: list[Batch]) -> None:
        """Timed as `benchmarks.train_step` times, over all of these batches."""
        if name not in self.placed:
            self.placed[name] = [meshes.place(batch, self.config, self.mesh) for batch in rows]
        jax.block_until_ready((self.state, self.placed[name]))
        began = time.monotonic()
        for together in itertools.batched(self.placed[name], TOGETHER):
            for batch in together:
                self.state, metrics = self.step(self.state, batch)
            jax.block_until_ready((self.state, metrics))
        self._add(name, self.tokens * len(rows) / (time.monotonic() - began))

    def loop(self, name: str, steps: int, made: list[Batch] | None = None) -> None:
        """mm01-train's loop for so many steps."""
        first = int(self.state.step)
        train = dataclasses.replace(self.config.train, steps=first + steps)
        config = dataclasses.replace(self.config, train=train)
        quiet = lambda line: None  # noqa: E731
        with tempfile.TemporaryDirectory() as folder, checkpoint.Checkpoints(folder, keep=1, log=quiet) as checkpoints:
            running = Unsaved(
                config,
                pathlib.Path(folder),
                checkpoints,
                self.dataset,
                Start(self.state, 0),
                quiet,
                described=None,
            )
            running.train_step, running.made = self.step, made
            with contextlib.suppress(loop.NonFinite):  # a last step that was refused took its time all the same
                running.train(Preemption())
            records = read_metrics(folder)
        self.state = running.state
        counted = records[WARM:-1]  # the last one waits for nothing dispatched behind it
        self._add(name, self.tokens * len(counted) / sum(record["seconds"] for record in counted))
        refused = sum(record["refused"] for record in records)
        print(f"  losses {records[0]['loss']:.4f} to {records[-1]['loss']:.4f}, {refused:g} steps refused", flush=True)

    def _add(self, name: str, speed: float) -> None:
        print(f"{self.subject}, fed by {name}: {speed:,.0f} tokens/s", flush=True)
        self.speeds.setdefault(name, []).append(speed)

    def end(self) -> None:
        """Medians over the turns."""
        found = {name: statistics.median(speeds) for name, speeds in self.speeds.items()}
        for name, speed in found.items():
            subject = f"{self.subject}, fed by {name}"
            self._row(f"{subject}: speed", round(speed), "tokens/s")
            self._row(f"{subject}: turns", len(self.speeds[name]))
            self._row(f"{subject}: of the bench's", round(100 * speed / found[BENCH], 2), "%")
            self._row(f"{subject}: of the bench's with the data's rows", round(100 * speed / found[SAME_ROWS], 2), "%")

    def _row(self, what: str, value, unit: str = "") -> None:
        print(f"{what} {value:,} {unit}" if unit else f"{what} {value}", flush=True)
        self.report.add(what, value, unit, device=results.device())

    def rows(self, count: int) -> list[Batch]:
        """The first batches of the data, and their digest."""
        size = self.config.train.batch_size
        print(f"first {DIGEST_ROWS} rows: sha256 {digest(self.dataset, DIGEST_ROWS)}", flush=True)
        made = pipeline.batches(self.dataset.train, 0, lambda at: size, vocab_size=self.config.model.vocab_size)
        return [batch for _, (_, batch) in zip(range(count), made, strict=False)]


def digest(dataset: Dataset, count: int) -> str:
    """sha256 of every array of the first rows."""
    sha = hashlib.sha256()
    for number in range(count):
        for name, array in sorted(dataset.train.row(number).items()):
            sha.update(f"{name}{array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.train_data", __doc__)
    parser.add_argument("--config", default="configs/bench_1b.py")
    parser.add_argument("--source", default="tokens", help="a folder of tokens, its tokenizer beside them; else bytes")
    parser.add_argument("--steps", type=whole(WARM + 3), default=40, help="of a turn")
    parser.add_argument("--seconds", type=whole(1), default=50, help="of the command, after which no turn begins")
    parser.add_argument("--compile-only", action="store_true", help="fills jax's compile cache")
    results.add_json(parser)
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    config = configured(arguments)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        print(f"{results.device()}, {os.cpu_count()} processors", flush=True)
        programs = compiled(config, mesh, lambda what: print(f"{time.monotonic() - began:.1f} s: {what}", flush=True))
        if arguments.compile_only:
            return 0
        sizes = config.train.sequence_length, config.model.vocab_size
        dataset = open_dataset(config.data, *sizes, log=lambda line: None)
        print(dataset.describe(), flush=True)
        packages = ("tokenizers", "array-record", "grain")
        report = results.Report(arguments.json, "benchmarks.train_data", argv, packages=packages)
        bench = Bench(config, dataset, programs, mesh, report)
        made = bench.rows(arguments.steps)
        own = [meshes.rows(config, number) for number in range(TOGETHER)]
        given = [d._replace(tokens=o.tokens, targets=o.targets) for d, o in zip(made, itertools.cycle(own))]
        bench.bench(BENCH, own)  # the first calls make kernels
        bench.speeds.clear()
        turns = itertools.count()
        while next(turns) == 0 or time.monotonic() - began < arguments.seconds:
            for name, rows in ((BENCH, own), (SAME_ROWS, made), (SAME_DOCUMENTS, given)):
                bench.bench(name, rows)
            bench.loop("the loop, from tokens", arguments.steps)
            bench.loop("the loop, the same rows made before", arguments.steps, made)
        bench.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
