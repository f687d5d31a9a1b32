"""Tokens a second of the engine's decode, all slots at work, beside the bare loop over the same caches in one run.

The bare loop is `bare_loop.loop`: what its steps take is what a step takes at all. The engine adds what every
request may ask: settings, masks, stops, log-probabilities, and a host that looks at what was drawn.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.inference import bare_loop
from benchmarks.inference.bench import Bench
from benchmarks.inference.decode_rows import BLOCKS, CONTEXT, OTHERS, _start
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_request import Request
from mm01_jax.inference.sampling import Sampling

STEPS = bare_loop.BLOCK
GRID = 256
CHOICES = {
    "greedy": Sampling(temperature=0.0),
    "temperature 1": Sampling(temperature=1.0),
    "top-p 0.9": Sampling(temperature=1.0, top_p=0.9),
}


def engine_of(bench: Bench, rows: int) -> Engine:
    """With room for a prompt of each row and what is drawn of it."""
    length = CONTEXT.get(rows, OTHERS) if bench.is_real else GRID
    room = -(-(length + (BLOCKS + 3) * STEPS) // GRID) * GRID
    sizes = {"num_slots": rows, "max_length": room, "grid": GRID, "pieces": length // GRID, "steps": STEPS}
    return Engine(bench.model, budget=rows * length, **sizes)


def measure(bench: Bench, rows: int) -> None:
    """Rows of results, of each choice: the speed of the engine, of the bare greedy loop, and their quotient."""
    engine, bare = engine_of(bench, rows), None
    length = engine.budget // rows
    for name, choice in CHOICES.items():
        second, cache = decoded(engine, bench.tokens(rows, length), choice)
        bare = bare_step(engine.devices.model, cache, rows) if bare is None else bare
        subject = bench.named(f"engine, {rows}x{length}, {name}")
        bench.add(subject, "speed", rows / second, "tokens/s")
        bench.add(subject, "bare loop", rows / bare, "tokens/s")
        bench.add(subject, "part", bare / second)


def decoded(engine: Engine, prompts: np.ndarray, choice: Sampling):
    """(seconds of a step with a token of each row, a copy of the cache after the prompts)."""
    told = {"max_tokens": (BLOCKS + 3) * STEPS, "sampling": choice}
    ids = [engine.submit(Request(prompt=row, seed=seed, **told)) for seed, row in enumerate(prompts)]
    engine.step()  # takes the prompts in, begins a call and reads none
    cache, times = jax.tree.map(jnp.copy, engine.devices._slots.cache), []
    engine.step()  # reads the first call, which may have been short
    for _ in range(BLOCKS + 1):
        began = time.monotonic()
        events = engine.step()
        times.append((time.monotonic() - began) / STEPS)
        if sum(len(event.tokens) for event in events) != STEPS * len(ids):
            raise ArithmeticError(f"{len(events)} events where each of {len(ids)} rows has {STEPS} tokens")
    engine.run()
    for id in ids:
        engine.forget(id)
    return statistics.median(times[1:]), cache


def bare_step(model, cache, rows: int) -> float:
    """Seconds of a step of the bare loop."""
    answers, draw = _start(model, cache, rows)
    times = []
    with jax.set_mesh(jax.tree.leaves(model)[0].sharding.mesh):
        for _ in range(BLOCKS + 1):
            began = time.monotonic()
            tokens, _, answers = bare_loop.loop(model, answers, draw, count=STEPS)
            np.asarray(tokens)
            times.append((time.monotonic() - began) / STEPS)
    return statistics.median(times[1:])
