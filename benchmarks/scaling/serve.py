"""Table 5: the released shape in int8 over all GPUs, random weights: decode and prefill against their plan.

As many experts as fit. The steps are those that `mm01_jax.plan` plans, with a cache that is full but for what is timed.
"""

import bisect
import dataclasses
import functools
import math
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from typing import ClassVar

from benchmarks.scaling.planned import GIB, Planned, Rows
from benchmarks.scaling.turns import Ready, Turns
from mm01_jax.config import MESH_AXES, Config

SHARE = 0.8  # of a GPU's memory that the plan by shapes may take; it knows few temporaries
STEPS = 16  # of decode, timed one by one
CHUNKS = 4  # of prefill
LEAST_CONTEXT = 4096  # tokens: several chunks
DEVIATION = 0.02  # of weights


def config_of(shape: str, devices: int, experts: int | None = None) -> Config:
    """text_01_serve, or tiny in int8, over `tensor`; slots in proportion to the devices."""
    from configs import text_01_serve, tiny

    base = text_01_serve.get_config() if shape == "text_01" else tiny.get_config()
    sizes = dict.fromkeys(MESH_AXES, 1) | {"tensor": math.gcd(devices, base.model.num_kv_heads)}
    sizes["expert"] = devices // sizes["tensor"]
    slots = max(devices, base.train.batch_size * devices // 8)
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, num_experts=experts or base.model.num_experts),
        compute=dataclasses.replace(base.compute, quantize="int8"),
        mesh=dataclasses.replace(base.mesh, **sizes),
        train=dataclasses.replace(
            base.train, batch_size=slots, sequence_length=max(LEAST_CONTEXT, base.train.sequence_length)
        ),
    )


def fitting(shape: str, devices: int) -> tuple[Config, float]:
    """(the config with as many experts as leave room by shapes, GiB of a GPU that its prefill takes), of a process that
    uses no GPU.
    """
    import jax

    from mm01_jax.plan import planner, targets

    jax.config.update("jax_platforms", "cpu")

    most, target = config_of(shape, devices).model.num_experts, targets.parse(f"h200-{devices}")
    step = max(config_of(shape, devices).mesh.expert, most // 16)
    allowed = range(step, most + 1, step)

    @functools.cache
    def needed(experts: int) -> int:
        return planner.make_plan("prefill", config_of(shape, devices, experts), target, compile_it=False).peak

    fit = bisect.bisect_right(allowed, SHARE * target.chip.hbm, key=needed)
    if not fit:
        raise ValueError(f"{shape}: {allowed[0]} of {most} experts take {needed(allowed[0]) / GIB:.0f} GiB a GPU")
    return config_of(shape, devices, allowed[fit - 1]), needed(allowed[fit - 1]) / GIB


@dataclasses.dataclass(frozen=True)
class Answering:
    """The job of one step: "prefill" or "decode"."""

    kind: str
    shape: str
    config: Config

    seconds: ClassVar[float] = 150

    @property
    def name(self) -> str:
        mesh = " x ".join(f"{axis} {size}" for axis in MESH_AXES if (size := getattr(self.config.mesh, axis)) > 1)
        return f"{self.kind} of {self.shape}, int8, {self.config.model.num_experts} experts, {mesh or 'one GPU'}"

    def work(self) -> Iterator[Ready | Rows]:
        import jax

        from benchmarks import mesh as meshes
        from mm01_jax import sharding
        from mm01_jax.plan import memory, targets
        from mm01_jax.plan.steps import make_step

        config, began, number = self.config, time.monotonic(), meshes.devices_of(self.config)
        mesh = sharding.make_mesh(config.mesh, jax.devices()[:number])
        with jax.set_mesh(mesh):
            step = make_step(self.kind, config, mesh)
            given = memory.per_chip(step)
            made = memory.estimated(self.kind, config, step.tokens, given["parameters"])
            planned = Planned(self.kind, config, step, sum(given.values()) + sum(made.values()))
            program = step.function.lower(*step.arguments).compile()
            yield Ready(f"compiled in {time.monotonic() - began:.0f} s, {meshes.gib(program):.1f} GiB")
            rows: Rows = [("slots", config.train.batch_size, ""), ("context", config.train.sequence_length, "tokens")]
            rows += [("compile", time.monotonic() - began, "s"), ("memory", meshes.gib(program), "GiB/GPU")]
            rows += planned.rows(program.as_text(), targets.parse(f"h200-{number}"))
            yield rows
            seconds = _seconds(self.kind, program, step, config)
            best = {quantity: value for quantity, value, _ in rows}["planned best"]
            speed = [("step", seconds, "s"), ("speed", step.tokens / seconds, "tokens/s")]
            yield [*speed, ("step, planned/measured", best / seconds, "ratio")]


def _seconds(kind: str, program, step, config: Config) -> float:
    """The median step, of a cache that has room for all of them and no more."""
    import jax
    import jax.numpy as jnp

    model, cache, tokens, *rest = step.arguments
    weights, cache = _filled(model), _filled(cache)
    times = STEPS if kind == "decode" else min(CHUNKS, config.train.sequence_length // tokens.shape[-1])
    taken = (times + 1) * (1 if kind == "decode" else tokens.shape[-1])
    start = jnp.full(cache.lengths.shape, max(0, config.train.sequence_length - taken), jnp.int32)
    cache = dataclasses.replace(cache, lengths=jax.device_put(start, cache.lengths.sharding))
    ids = jax.jit(lambda: jnp.arange(tokens.size, dtype=jnp.int32).reshape(tokens.shape) * 7 % config.model.vocab_size)
    whole = jnp.full(rest[0].shape, True if kind == "decode" else tokens.shape[-1], rest[0].dtype)
    batch = jax.device_put(ids(), tokens.sharding), jax.device_put(whole, rest[0].sharding)
    found = []
    for _ in range(times + 1):
        jax.block_until_ready(cache)
        began = time.monotonic()
        out, cache = program(weights, cache, *batch)
        jax.block_until_ready(out)
        found.append(time.monotonic() - began)
    if not bool(jnp.isfinite(out).all()):
        raise ValueError("numbers that are not finite: routing is then no routing")
    return statistics.median(found[1:])


def _filled(tree):
    """Arrays in the places of shapes, drawn from a hash of every place, leaf by leaf: no leaf is held twice."""
    import jax

    from mm01_jax.checkpoint import leaf_paths

    leaves, made = jax.tree.leaves(tree), []
    for number, (path, leaf) in enumerate(zip(leaf_paths(tree), leaves, strict=True)):
        draw = functools.partial(_drawn, leaf.shape, leaf.dtype, path, number)
        made.append(jax.jit(draw, out_shardings=leaf.sharding)())
    return jax.tree.unflatten(jax.tree.structure(tree), made)


def _drawn(shape: tuple[int, ...], dtype, path: str, number: int):
    """Norms 1, all else even around 0."""
    import jax.numpy as jnp
    from jax import lax

    if "norm" in path:
        return jnp.ones(shape, dtype)
    if path.endswith("scale"):
        return jnp.full(shape, DEVIATION / 73, dtype)  # as an int8 that is even has
    place = jnp.full(shape, number * 0x9E3779B9 % 2**32, jnp.uint32)
    for axis in range(len(shape)):
        place = (place ^ lax.broadcasted_iota(jnp.uint32, shape, axis)) * jnp.uint32(0x85EBCA6B)
        place ^= place >> 15
    if jnp.issubdtype(dtype, jnp.integer):
        return ((place >> 8) % 255).astype(jnp.int32).astype(dtype) - jnp.asarray(127, dtype)
    even = (place >> 8).astype(jnp.float32) / 2**23 - 1
    return (even * (math.sqrt(3) * DEVIATION)).astype(dtype)


def measure(turns: Turns, shapes: list[str]) -> None:
    for shape in shapes:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            config, needed = pool.apply(fitting, (shape, turns.devices.number))
        turns.tell(f"{shape}: {config.model.num_experts} experts fit: {needed:.1f} GiB a GPU by shapes")
        for worker, _ in turns.ready([Answering(kind, shape, config) for kind in ("decode", "prefill")]):
            if values := turns.turn(worker):
                turns.tell(
                    f"{worker.job.name}: {values['speed']:,.0f} tokens/s, {values['step']:.4f} s (planned "
                    f"{values['planned best']:.4f} to {values['planned worst']:.4f}), memory {values['memory']:.1f} "
                    f"(by shapes {values['planned by shapes']:.1f}) GiB"
                )
