"""The loss of real text with our kernels and with plain XLA, beside the spread that the first weights make.

    python -m benchmarks.loss_spread --periods=1 --rows=4 --json=benchmarks/results/loss_spread.json

On a Hopper GPU; elsewhere both are plain XLA. The same rows in all runs; a seed draws the first weights. Both programs
compile at once, then the runs follow one another: our kernels with each seed, plain XLA with each. What counts is the
mean loss of the last steps.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import sys
import time
from unittest import mock

import jax
import numpy as np

from benchmarks import mesh as meshes
from benchmarks.results import Report, add_json, device
from mm01_jax.config import Config, MeshConfig, command_line
from mm01_jax.data.dataset import open_dataset
from mm01_jax.data.pipeline import batches
from mm01_jax.parallel.overlap import compiler_options
from pallas_kernels import dispatch
from tests.command_line import Parser, whole

LAST = 50  # steps whose mean loss is compared
PATHS = ("kernels", "plain XLA")


def configured(arguments) -> Config:
    """The config on one device, in the order in which rows are read."""
    config = command_line.load_config(arguments.config)
    model = dataclasses.replace(config.model, num_periods=arguments.periods or config.model.num_periods)
    rows = arguments.rows or config.train.batch_size
    train = dataclasses.replace(
        config.train, batch_size=rows, batch_ramp=(), num_microbatches=1, steps=max(config.train.steps, arguments.steps)
    )
    compute = dataclasses.replace(
        config.compute, sequence_layout="contiguous", exchange_groups=1, remat=arguments.remat or config.compute.remat
    )
    mesh = MeshConfig(rules=config.mesh.rules)
    return dataclasses.replace(config, model=model, train=train, compute=compute, mesh=mesh)


def lowered(config: Config, path: str):
    """(mesh, (the step, the initial state)) as `path` computes them."""
    jax.clear_caches()  # what is jitted inside was traced for the other path
    plain = mock.patch.object(dispatch, "why_not_hopper", lambda: "plain XLA is asked for")
    with contextlib.nullcontext() if path == PATHS[0] else plain:
        return meshes.trace(config)


def run(programs, config: Config, mesh, rows: list, seed: int, tell) -> np.ndarray:
    """The loss of every step."""
    train, initial = programs
    state, losses, began = initial(jax.random.key(seed)), [], time.monotonic()
    for number, batch in enumerate(rows):
        state, metrics = train(state, meshes.place(batch, config, mesh))
        losses.append(metrics["loss"])
        if number % 100 == 99:
            second = (time.monotonic() - began) / (number + 1)
            tell(f"step {number + 1}: loss {float(losses[-1]):.4f}, {second * (len(rows) - number - 1):.0f} s left")
    return np.asarray(jax.device_get(losses), np.float64)


def _parse(argv: list[str] | None):
    parser = Parser("benchmarks.loss_spread", __doc__)
    add_json(parser)
    parser.add_argument("--config", default="configs/small.py")
    parser.add_argument("--steps", type=whole(LAST), default=500)
    parser.add_argument("--seeds", type=whole(2), default=3)
    for name in ("rows", "periods"):
        parser.add_argument(f"--{name}", type=whole(1), help="instead of the config's")
    parser.add_argument("--remat", choices=("none", "named", "full"), help="instead of the config's")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = _parse(argv)
    report, began = Report(arguments.json, "benchmarks.loss_spread", argv), time.monotonic()

    def tell(line: str) -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {line}", flush=True)

    config = configured(arguments)
    model, train = config.model, config.train
    subject = f"{config.name}, {model.num_layers} layers, {train.batch_size}x{train.sequence_length}"
    traced = {path: lowered(config, path) for path in PATHS}
    for path, (_, (step, _)) in traced.items():
        tell(f"{path}: {step.as_text().count('mosaic_gpu')} calls of our kernels lowered")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiling = {path: [pool.submit(_compile, x) for x in programs] for path, (_, programs) in traced.items()}
        dataset = open_dataset(config.data, train.sequence_length, model.vocab_size, log=tell)
        stream = batches(dataset.train, 0, lambda _: train.batch_size, vocab_size=model.vocab_size)
        rows = [next(stream)[1] for _ in range(arguments.steps)]
        programs = {path: [future.result() for future in futures] for path, futures in compiling.items()}
    tell("compiled")
    ends: dict[str, list[float]] = {path: [] for path in PATHS}
    add = functools.partial(report.add, device=device())
    for path, seed in ((path, seed) for path in PATHS for seed in range(arguments.seeds)):
        losses = run(programs[path], config, traced[path][0], rows, seed, functools.partial(_tell, tell, path, seed))
        ends[path].append(float(losses[-LAST:].mean()))
        add(f"{subject}, {path}, seed {seed}: first loss", float(losses[0]), "nats a token")
        add(f"{subject}, {path}, seed {seed}: loss of the last {LAST} of {len(losses)}", ends[path][-1], "nats a token")
        if path != PATHS[0]:
            apart = abs(ends[path][seed] - ends[PATHS[0]][seed])
            tell(f"apart {apart:.5f}, spread of the seeds {max(ends[PATHS[0]]) - min(ends[PATHS[0]]):.5f}")
            add(f"{subject}, seed {seed}: between the paths", apart, "nats a token")
        elif seed == arguments.seeds - 1:
            spread = max(ends[path]) - min(ends[path])
            add(f"{subject}: spread of {arguments.seeds} seeds", spread, "nats a token")
    return 0


def _tell(tell, path: str, seed: int, line: str) -> None:
    tell(f"{path}, seed {seed}: {line}")


def _compile(program):
    return program.compile(compiler_options=compiler_options(jax.devices()[0].platform))


if __name__ == "__main__":
    sys.exit(main())
