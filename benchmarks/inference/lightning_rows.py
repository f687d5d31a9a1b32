"""The decode step of one lightning layer of 64 heads alone: states read and written, or read beside a ring that is
folded into them every RING steps; each beside its floor, the states' bytes at the speed of a copy."""

import time

import jax
import jax.numpy as jnp

from benchmarks.inference.bench import Bench
from pallas_kernels.few_rows import filled_up
from pallas_kernels.lightning_step import RING, empty_rings, lightning_fold, lightning_ring_step, lightning_step

HEADS, HEAD_DIM = 64, 128
LAYERS = 2  # taken in turn, so that nothing is found in the chip's cache
REPEATS = 12


def measure(bench: Bench, rows: int) -> None:
    """Milliseconds of a step of `rows` rows, either way; of the ring the fold's share is in it."""
    dtype = jnp.dtype(bench.config.compute.dtype)
    slope = jnp.tile(jnp.linspace(0.01, 0.5, HEADS, dtype=jnp.float32)[None], (LAYERS, 1))
    weight, active = jnp.ones((LAYERS, HEADS, HEAD_DIM), dtype), jnp.ones(rows, bool)
    x = jax.random.normal(jax.random.key(1), (filled_up(rows), 4 * HEADS * HEAD_DIM), dtype)

    def in_place(states, x):
        def one(states, layer):
            _, u, states = lightning_step(x, states, slope, weight, active, layer[None])
            return states, u[0, 0]

        return jax.lax.scan(one, states, jnp.tile(jnp.arange(LAYERS, dtype=jnp.int32), RING))

    def ringed(states, x):
        def one(rings, place):
            for layer in range(LAYERS):
                told = active, place[None], jnp.full(1, layer, jnp.int32)
                _, u, rings = lightning_ring_step(x, states, rings, slope, weight, told)
            return rings, u[0, 0]

        rings, u = jax.lax.scan(one, empty_rings(states, dtype), jnp.arange(RING, dtype=jnp.int32))
        return lightning_fold(states, rings, slope, jnp.full(rows, RING, jnp.int32)), u

    shape = (LAYERS, rows, HEADS, HEAD_DIM, HEAD_DIM)
    size, subject = 4 * rows * HEADS * HEAD_DIM**2, bench.named(f"lightning step {rows} rows, {HEADS} heads")
    for name, function, times in (("in place", in_place, 2.0), ("with a ring and its fold", ringed, 1 + 2 / RING)):
        jitted = jax.jit(function, donate_argnums=0)
        make = jax.jit(lambda: jax.random.normal(jax.random.key(0), shape, jnp.float32))
        states = bench.call(make, like=jax.ShapeDtypeStruct(shape, jnp.float32))
        if bench.compile_only:
            bench.call(jitted, states, x)
        else:
            second = _time(jitted, states, x)
            floor = 1e3 * times * size / bench.copy if bench.is_real else None
            bench.add(subject, f"a step {name}", 1e3 * second / RING / LAYERS, "ms", floor=floor)


def _time(function, states, x) -> float:
    """The median seconds of a call."""
    times = []
    for _ in range(REPEATS + 2):
        began = time.monotonic()
        states, u = function(states, x)
        jax.block_until_ready((states, u))
        times.append(time.monotonic() - began)
    return sorted(times[2:])[REPEATS // 2]
