"""The 1 B shape on one GPU, then on two: expert 2, sequence 2, tensor 2, data 2; and sequence 2 at twice the length.

    python -m benchmarks.mesh_gpu --out=benchmarks/mesh_gpu.md

Every case starts from the same state and takes the same batches; their losses are printed beside those of one GPU.
Cases left when `--minutes` are over are named, not run.
"""

import argparse
import dataclasses
import functools
import pathlib
import statistics
import sys
import time

import jax
import numpy as np

from configs import bench_1b
from mm01_jax import sharding
from mm01_jax.config import Config, MeshConfig
from mm01_jax.parallel.overlap import compiler_options
from mm01_jax.train import step
from mm01_jax.train.flops import peak_flops, train_flops_per_token

BF16_EPS = 2.0**-8
CASES = ({}, {"expert": 2}, {"sequence": 2}, {"tensor": 2}, {"data": 2})
HEAD = """# The 1 B shape on one and two GPUs

`python -m benchmarks.mesh_gpu --out=benchmarks/mesh_gpu.md`, jax {version}, {count} x {kind}.
configs/bench_1b.py: {rows} rows of {length} tokens a step, all cases the same rows; {steps} timed steps, their median.
Loss: largest difference from one GPU over all steps, relative (bfloat16 has {eps:.1e} a rounding).

| mesh | rows x tokens | tokens/s | against one | % MFU of all | s/step | GiB/GPU | compile s | losses | difference |
|---|---|---|---|---|---|---|---|---|---|
"""


@dataclasses.dataclass(frozen=True)
class Result:
    tokens_per_second: float
    losses: list[float]


class Bench:
    """One output file, one time limit, one initial state."""

    def __init__(self, out: pathlib.Path, steps: int, minutes: float):
        self.out, self.steps = out, steps
        self.deadline = time.monotonic() + 60 * minutes

    def say(self, line: str) -> None:
        print(line, flush=True)
        with self.out.open("a") as file:
            file.write(line + "\n")

    def case(self, config: Config, alone: Result | None, *, steps: int) -> Result | None:
        """Runs one case and writes its line; a failure is a line too."""
        sizes = {axis: size for axis in sharding.AXES if (size := getattr(config.mesh, axis)) > 1}
        name = ", ".join(f"{axis} {size}" for axis, size in sizes.items()) or "one GPU"
        if time.monotonic() > self.deadline:
            self.say(f"| {name} | not run, no time left |")
            return None
        try:
            return self._measure(name, config, alone, steps)
        except Exception as error:  # the other cases are worth having
            self.say(f"| {name} | failed: {type(error).__name__}: {str(error)[:300]!r} |")
            return None

    def _measure(self, name: str, config: Config, alone: Result | None, steps: int) -> Result:
        compiled, state, batches, seconds_to_compile = prepare(config, steps + 1)
        losses, seconds = [], []
        for batch in batches:
            start = time.monotonic()
            state, metrics = compiled(state, batch)
            losses.append(float(metrics["loss"]))  # waits
            seconds.append(time.monotonic() - start)
            assert not metrics["refused"], f"step refused, overflow {float(metrics['overflow'])}"
        train, devices = config.train, config.mesh.data * config.mesh.expert * config.mesh.tensor * config.mesh.sequence
        second = statistics.median(seconds[1:])
        speed = train.batch_size * train.sequence_length / second
        peak = peak_flops(jax.devices()[0])
        mfu = 100 * speed * train_flops_per_token(config.model, train.sequence_length) / (peak * devices) if peak else 0
        scaling = f"{speed / alone.tokens_per_second:.2f}" if alone else ""
        same_rows = alone and len(alone.losses) == len(losses)
        apart = f"{max(abs(a / b - 1) for a, b in zip(losses, alone.losses, strict=True)):.1e}" if same_rows else ""
        memory = compiled.memory_analysis()
        gib = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30
        self.say(
            f"| {name} | {train.batch_size} x {train.sequence_length} | {speed:,.0f} | {scaling} | {mfu:.1f} | "
            f"{second:.3f} | {gib:.1f} | {seconds_to_compile:.0f} | {losses[0]:.4f} .. {losses[-1]:.4f} | {apart} |"
        )
        return Result(speed, losses)


def lower(config: Config, devices: list[jax.Device]):
    """The step compiled for these devices, and its mesh."""
    mesh = sharding.make_mesh(config.mesh, devices)
    with jax.set_mesh(mesh):
        state = step.abstract_state(config, mesh)
        placed = jax.tree.map(lambda x: x.sharding, state)
        shape = (config.train.batch_size, config.train.sequence_length)
        where = sharding.named(mesh, config.mesh.rules, "batch", "seq")
        batch = {k: jax.ShapeDtypeStruct(shape, v.dtype, sharding=where) for k, v in rows(config, 0, 1).items()}
        jitted = jax.jit(
            functools.partial(step.train_step, config=config), donate_argnums=0, out_shardings=(placed, None)
        )
        options = compiler_options(devices[0].platform)
        return jitted.lower(state, batch).compile(compiler_options=options), mesh, placed


def prepare(config: Config, steps: int):
    """(compiled step, state on the mesh, batches, seconds to compile)."""
    size = config.mesh.data * config.mesh.expert * config.mesh.tensor * config.mesh.sequence
    start = time.monotonic()
    compiled, mesh, placed = lower(config, jax.devices()[:size])
    seconds = time.monotonic() - start
    with jax.set_mesh(mesh):
        make = functools.partial(step.init_state, config)
        state = jax.jit(make, out_shardings=placed)(jax.random.key(config.train.seed))
        where = sharding.named(mesh, config.mesh.rules, "batch", "seq")
        batches = [jax.device_put(rows(config, i), where) for i in range(steps)]
    return compiled, state, batches, seconds


def rows(config: Config, at: int, length: int | None = None) -> dict[str, np.ndarray]:
    """Step `at`'s rows: two documents a row, low token ids more often than high ones, so that a step learns much."""
    shape = (config.train.batch_size, length or config.train.sequence_length)
    rng = np.random.default_rng(at)
    tokens = (config.model.vocab_size * rng.random((shape[0], shape[1] + 1)) ** 4).astype(np.int32)
    at_second = np.arange(shape[1]) >= shape[1] // 3
    segments = np.broadcast_to(at_second, shape).astype(np.int32)
    positions = np.broadcast_to(np.arange(shape[1]) - at_second * (shape[1] // 3), shape).astype(np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": positions,
        "segments": segments,
        "weights": np.ones(shape, np.float32),
    }


def replaced(mesh: dict[str, int], rows: int | None = None, length: int | None = None, **model) -> Config:
    config = bench_1b.get_config()
    train = dataclasses.replace(
        config.train,
        batch_size=rows or config.train.batch_size,
        sequence_length=length or config.train.sequence_length,
    )
    mesh_config: MeshConfig = dataclasses.replace(config.mesh, **mesh)
    return dataclasses.replace(config, mesh=mesh_config, train=train, model=dataclasses.replace(config.model, **model))


def longest_that_fits(bench: Bench, lengths: list[int]) -> int | None:
    """The longest single row whose step fits one GPU by the compiler's own count of bytes."""
    limit = jax.devices()[0].memory_stats()["bytes_limit"]
    for length in lengths:
        memory = lower(replaced({}, 1, length), jax.devices()[:1])[0].memory_analysis()
        need = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        print(f"one row of {length} tokens on one GPU: {need / 2**30:.1f} of {limit / 2**30:.1f} GiB", flush=True)
        if need < limit:
            return length
        if time.monotonic() > bench.deadline:
            return None
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=5.0, help="no case begins after that")
    parser.add_argument("--lengths", default="524288,262144,131072,65536", help="tried from the left; empty: none")
    args = parser.parse_args()
    device, train = jax.devices()[0], bench_1b.get_config().train
    bench = Bench(args.out, args.steps, args.minutes)
    args.out.write_text("")
    shape = {"rows": train.batch_size, "length": train.sequence_length, "steps": args.steps, "eps": BF16_EPS}
    bench.say(HEAD.format(version=jax.__version__, count=jax.device_count(), kind=device.device_kind, **shape).rstrip())
    cases = [case for case in CASES if not case or jax.device_count() >= 2]
    alone = None
    for case in cases:
        result = bench.case(replaced(case), alone, steps=args.steps)
        alone = alone or result
    if args.lengths:
        longest = longest_that_fits(bench, [int(n) for n in args.lengths.split(",")])
        if longest:
            single = bench.case(replaced({}, 1, longest), None, steps=1)
            if jax.device_count() >= 2:
                speed = single and Result(single.tokens_per_second, [])  # other rows, other losses
                bench.case(replaced({"sequence": 2}, 1, 2 * longest), speed, steps=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
